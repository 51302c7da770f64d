//! A context turned into what reaches its cluster: address, proxy, CA bundle, credentials.

use std::{fs, path::PathBuf, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Uri;
use kube::config::{AuthInfo, Cluster, ExecAuthCluster};
use rustls::{crypto::CryptoProvider, sign::CertifiedKey};
use secrecy::{ExposeSecret, SecretString};

use super::{check, find_plugin, merge::Merged, server};
use crate::{
    config::ContextName,
    k8s::{
        ClusterError,
        exec_path::ExecPath,
        proxy::{self, Environment},
        token_file::{TokenFile, bearer},
    },
    tls::{bundle::Bundle, identity},
};

/// What is needed to reach a cluster as a user.
pub struct Access {
    /// The address, and the credentials that kube applies: token, password, plugin, OIDC.
    pub config: kube::Config,
    /// None: the system's CA bundle, or none at all where the kubeconfig asks for that.
    pub bundle: Option<Bundle>,
    /// The client certificate.
    pub identity: Option<CertifiedKey>,
    pub token_file: Option<TokenFile>,
}

impl Access {
    /// The cluster that adit runs in, as the pod's service account.
    pub fn in_cluster() -> Result<Self, ClusterError> {
        let unusable = |reason: String| ClusterError::Kubeconfig { reason };
        let mut config = kube::Config::incluster()
            .map_err(|_| unusable("there is no kubeconfig, and adit does not run in a cluster".to_owned()))?;
        let token_file = config.auth_info.token_file.take().map(|path| open_token(path, None)).transpose();
        let token_file = token_file.map_err(|reason| unusable(format!("the pod's service account: {reason}")))?;
        Ok(Self { config, bundle: None, identity: None, token_file })
    }

    /// # Errors
    /// The context, its cluster or its user cannot be used: which, where, and why.
    pub(super) fn of(merged: &Merged, context: &ContextName, exec_path: &ExecPath) -> Result<Self, ClusterError> {
        let unusable = |reason: String| ClusterError::Kubeconfig { reason: format!("context {context}: {reason}") };
        let contexts = one(&merged.kubeconfig.contexts, "contexts", |named| named.name == context.0);
        let Some(found) = contexts.map_err(unusable)? else {
            let known = merged.kubeconfig.contexts.iter().map(|named| ContextName(named.name.clone())).collect();
            return Err(ClusterError::UnknownContext { context: context.clone(), known });
        };
        let Some(found) = found.context.clone() else {
            return Err(unusable("it names no cluster, or one of its values has the wrong type".to_owned()));
        };

        let called = merged.cluster(&found.cluster);
        let of_cluster = |reason: String| unusable(format!("{called}: {reason}"));
        let clusters = one(&merged.kubeconfig.clusters, "clusters", |named| named.name == found.cluster);
        let cluster = match clusters.map_err(unusable)? {
            None => return Err(unusable(format!("no file has the cluster {:?} that it names", found.cluster))),
            Some(named) => named.cluster.clone().ok_or_else(|| of_cluster(WRONG_TYPE.to_owned()))?,
        };
        check::cluster(&cluster).map_err(of_cluster)?;
        let server = cluster.server.as_deref().ok_or_else(|| of_cluster("it has no server: add one".to_owned()))?;
        let server = server::url(server).map_err(of_cluster)?;

        let name = found.user.as_deref().unwrap_or_default();
        let called = merged.user(name);
        let of_user = |reason: String| ClusterError::Credentials {
            context: context.clone(),
            reason: format!("{called}: {reason}"),
            hint: None,
        };
        let is_this = |named: &kube::config::NamedAuthInfo| !name.is_empty() && named.name == name;
        let user = match one(&merged.kubeconfig.auth_infos, "users", is_this).map_err(unusable)? {
            // A server that takes everybody, like that of 'kubectl proxy', needs no user.
            None if name.is_empty() || server.scheme_str() == Some("http") => AuthInfo::default(),
            None => {
                return Err(of_user("no file has this user: add it, or name another one in the context".to_owned()));
            }
            Some(named) => named.auth_info.clone().ok_or_else(|| of_user(WRONG_TYPE.to_owned()))?,
        };
        check::user(&user).map_err(of_user)?;

        let mut access = match server.scheme_str() {
            Some("https") => Self::over_tls(server, &cluster, user, exec_path, context, &of_cluster, &of_user)?,
            // No secret goes over a connection that anybody can read.
            _ => Self::in_the_clear(server, user),
        };
        access.config.default_namespace = found.namespace.unwrap_or_else(|| "default".to_owned());
        access.config.proxy_url = match &cluster.proxy_url {
            Some(proxy) => {
                let parsed = proxy::of_kubeconfig(proxy);
                Some(parsed.map_err(|reason| of_cluster(format!("proxy-url is {proxy:?}: {reason}")))?)
            }
            None => Environment::of_process().proxy_for(&access.config.cluster_url).map_err(unusable)?,
        };
        Ok(access)
    }

    fn in_the_clear(server: Uri, user: AuthInfo) -> Self {
        let mut config = kube::Config::new(server);
        config.auth_info = impersonation(&user);
        Self { config, bundle: None, identity: None, token_file: None }
    }

    fn over_tls(
        server: Uri,
        cluster: &Cluster,
        mut user: AuthInfo,
        exec_path: &ExecPath,
        context: &ContextName,
        of_cluster: &dyn Fn(String) -> ClusterError,
        of_user: &dyn Fn(String) -> ClusterError,
    ) -> Result<Self, ClusterError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (data, path) = (&cluster.certificate_authority_data, &cluster.certificate_authority);
        let bundle = pem("certificate-authority", data.as_deref(), path.as_deref()).map_err(of_cluster)?;
        let bundle =
            bundle.map(|bytes| bundle_of(&bytes, path.as_deref(), &provider)).transpose().map_err(of_cluster)?;

        let (data, path) = (&user.client_certificate_data, &user.client_certificate);
        let chain = pem("client-certificate", data.as_deref(), path.as_deref()).map_err(of_user)?;
        let data = user.client_key_data.as_ref().map(|data| data.expose_secret());
        let identity = match chain {
            None => None,
            Some(chain) => {
                let key = pem("client-key", data, user.client_key.as_deref()).map_err(of_user)?.unwrap_or_default();
                Some(identity::from_pem(&chain, &key, &provider).map_err(|error| of_user(error.to_string()))?)
            }
        };
        (user.client_certificate, user.client_certificate_data) = (None, None);
        (user.client_key, user.client_key_data) = (None, None);

        let token = user.token.as_ref().map(|token| token.expose_secret());
        if let Some(token) = token {
            bearer(token).map_err(|error| of_user(error.to_string()))?;
        }
        let token_file = user.token_file.take().map(|path| open_token(path, token)).transpose().map_err(of_user)?;
        if token_file.is_some() {
            user.token = None;
        }
        // As in client-go, a plugin is not asked where there is something else to sign in with.
        if identity.is_some() || token_file.is_some() || user.token.is_some() || user.username.is_some() {
            user.exec = None;
        }
        // client-go sends a name without a password.
        if user.username.is_some() != user.password.is_some() {
            user.username.get_or_insert_default();
            user.password.get_or_insert_with(|| SecretString::from(String::new()));
        }
        if let Some(exec) = &mut user.exec {
            find_plugin(exec, exec_path, context)?;
            if exec.provide_cluster_info {
                let info = ExecAuthCluster::try_from(cluster);
                exec.cluster = Some(info.map_err(|_| of_cluster("its CA bundle cannot be read".to_owned()))?);
            }
        }
        let mut config = kube::Config::new(server);
        config.accept_invalid_certs = cluster.insecure_skip_tls_verify == Some(true);
        config.tls_server_name = cluster.tls_server_name.clone();
        config.auth_info = user;
        Ok(Self { config, bundle, identity, token_file })
    }
}

const WRONG_TYPE: &str = "one of its values has the wrong type";

/// Returns the entry that is asked for.
///
/// # Errors
/// One file has two of them.
fn one<'a, T>(list: &'a [T], kind: &str, is_this: impl Fn(&T) -> bool) -> Result<Option<&'a T>, String> {
    let mut found = list.iter().filter(|entry| is_this(entry));
    match (found.next(), found.next()) {
        (_, Some(_)) => Err(format!("two {kind} of one file have the same name: rename or remove one of them")),
        (found, None) => Ok(found),
    }
}

fn impersonation(user: &AuthInfo) -> AuthInfo {
    AuthInfo {
        impersonate: user.impersonate.clone(),
        impersonate_uid: user.impersonate_uid.clone(),
        impersonate_groups: user.impersonate_groups.clone(),
        impersonate_user_extra: user.impersonate_user_extra.clone(),
        ..AuthInfo::default()
    }
}

/// Returns what `KEY-data` or the file of `KEY` has.
fn pem(key: &str, data: Option<&str>, path: Option<&str>) -> Result<Option<Vec<u8>>, String> {
    match (data, path) {
        (Some(data), _) => STANDARD.decode(data).map(Some).map_err(|_| format!("{key}-data is no base64")),
        (None, Some(path)) => match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => Err(format!("cannot read the {key} {path}: {}", words(&error))),
        },
        (None, None) => Ok(None),
    }
}

fn bundle_of(bytes: &[u8], path: Option<&str>, provider: &Arc<CryptoProvider>) -> Result<Bundle, String> {
    if bytes.is_empty() {
        // As in client-go: an empty file trusts nobody.
        return Ok(Bundle::new(Vec::new(), provider));
    }
    let place = path.map_or_else(|| "certificate-authority-data".to_owned(), |path| format!("the CA bundle {path}"));
    Bundle::from_pem(bytes, provider).map_err(|reason| format!("{place}: {reason}"))
}

fn open_token(path: String, otherwise: Option<&str>) -> Result<TokenFile, String> {
    TokenFile::open(PathBuf::from(&path), otherwise)
        .map_err(|error| format!("cannot use the token file {path}: {}", words(&error)))
}

/// Returns the error of a file without its number.
fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}
