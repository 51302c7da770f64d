//! Settings to reach the cluster of a context: address, proxy, CA bundle, credentials.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::PathBuf,
    sync::Arc,
};

use base64::Engine;
use http::{HeaderMap, header::AUTHORIZATION};
use kube::config::AuthInfo;
use rustls::{crypto::CryptoProvider, sign::CertifiedKey};
use secrecy::ExposeSecret;

use super::{
    Fingerprint, check, impersonation, kuberc,
    merge::Merged,
    plugin,
    server::{self, Server},
    shape::LENIENT,
    stored::Stored,
};
use crate::{
    config::ContextName,
    k8s::{
        ClusterError,
        credential::{Credential, basic, bearer},
        credentials::{
            Login,
            exec_credential::Version,
            oidc::{self, Oidc, Settings},
            token_file::TokenFile,
        },
        exec_path::ExecPath,
        proxy::{self, Environment},
    },
    tls::{bundle::Bundle, identity, reason},
};

/// Cluster and user of a context, ready for a client.
pub struct Access {
    /// Address and TLS verification, without credentials.
    pub config: kube::Config,
    /// `None`: the system's CA bundle, or no verification if the kubeconfig asks for that.
    pub bundle: Option<Bundle>,
    pub login: Login,
    /// User and file, for messages.
    pub user: String,
    /// Headers for each request: impersonation, and the Authorization header from the server's URL.
    pub headers: HeaderMap,
    /// Files that were read beside the kubeconfigs.
    pub files: Fingerprint,
    /// Number that changes with the cluster or the user, whatever the files and the other contexts are.
    pub digest: u64,
}

impl Access {
    /// # Errors
    /// Fails if the context, its cluster or its user cannot be used. The error says which, where, and why.
    pub(super) fn of(merged: &Merged, context: &ContextName, exec_path: &ExecPath) -> Result<Self, ClusterError> {
        let unusable = |reason: String| ClusterError::Kubeconfig { reason: format!("context {context}: {reason}") };
        let Some(found) = merged.context(context) else {
            let known = merged.contexts().filter_map(|(name, _)| name.parse().ok()).collect();
            return Err(ClusterError::UnknownContext { context: context.clone(), files: merged.files(), known });
        };

        let called = merged.cluster(&found.cluster);
        let of_cluster = |reason: String| unusable(format!("{called}: {reason}"));
        // As in client-go, a context that names no cluster or user has those with the name "".
        let cluster = merged.kubeconfig.clusters.iter().find(|named| named.name == found.cluster);
        let cluster = cluster.and_then(|named| named.cluster.clone()).ok_or_else(|| {
            unusable(match found.cluster.is_empty() {
                true => "it names no cluster: add one".to_owned(),
                false => format!("it names cluster {:?}, which no kubeconfig file defines", found.cluster),
            })
        })?;
        check::cluster(&cluster).map_err(of_cluster)?;
        let server = cluster.server.as_deref().ok_or_else(|| of_cluster("it has no server: add one".to_owned()))?;
        let Server { url: server, header } = server::url(server).map_err(of_cluster)?;

        let name = found.user.as_deref().unwrap_or_default();
        let called = merged.user(name);
        let of_user = |reason: String| ClusterError::Credentials {
            context: context.clone(),
            reason: format!("{called}: {reason}"),
            hint: None,
        };
        let mut users = merged.kubeconfig.auth_infos.iter();
        let user = match users.find(|named| named.name == name) {
            // A server without authentication, like that of 'kubectl proxy', needs no user.
            None if name.is_empty() || server.scheme_str() == Some("http") => AuthInfo::default(),
            None => {
                return Err(of_user("no file has this user: add it, or name another one in the context".to_owned()));
            }
            Some(named) => named.auth_info.clone().ok_or_else(|| of_user(plugin::NO_SUCH_MODE.to_owned()))?,
        };
        check::user(&user).map_err(of_user)?;

        let proxy_url = match &cluster.proxy_url {
            Some(proxy) => {
                let parsed = proxy::of_kubeconfig(proxy);
                Some(parsed.map_err(|reason| {
                    of_cluster(format!("proxy-url is {:?}: {reason}", proxy::without_password(proxy)))
                })?)
            }
            None => Environment::of_process().proxy_for(&server),
        };
        let mut headers = impersonation::headers(&user).map_err(of_user)?;
        headers.extend(header.map(|header| (AUTHORIZATION, header)));
        // Recorded before the files are read, so that a change during the read is detected.
        let files = [&cluster.certificate_authority, &user.client_certificate, &user.client_key];
        let mut files: Vec<PathBuf> = files.into_iter().flatten().map(PathBuf::from).collect();
        files.extend(user.auth_provider.iter().filter_map(|provider| oidc::ca_file(&provider.config)));
        files.extend(user.exec.as_ref().and_then(|_| kuberc::path()));
        let files = Fingerprint::of(&files);
        let (pem, bundle, login) = match server.scheme_str() {
            Some("https") => {
                let (data, path) = (&cluster.certificate_authority_data, &cluster.certificate_authority);
                let pem = pem("certificate-authority", data.as_deref(), path.as_deref()).map_err(of_cluster)?;
                let provider = crate::tls::provider();
                let bundle = pem.as_deref().map(|pem| bundle_of(pem, path.as_deref(), &provider));
                let info = || plugin::cluster_info(&cluster, pem.as_deref(), proxy_url.as_ref());
                if let Some(exec) = &user.exec {
                    // Checked even for a plugin that is not used.
                    Version::of(exec.api_version.as_deref().unwrap_or_default()).map_err(of_user)?;
                }
                let login = match &user.exec {
                    // As in client-go, the plugin is not used if there are other credentials.
                    Some(exec) if !has_credentials(&user) => {
                        let info = exec.provide_cluster_info.then(info);
                        Login::Plugin(Box::new(plugin::find(exec, info, exec_path, &of_user)?))
                    }
                    _ => login(&user, &provider, |loaded| stored(merged, name, loaded)).map_err(of_user)?,
                };
                let bundle = bundle.transpose().map_err(of_cluster)?;
                (pem, bundle, login)
            }
            // Credentials must not be sent over an unencrypted connection.
            _ => (None, None, Login::Fixed(Credential::default())),
        };
        let mut config = kube::Config::new(server);
        config.accept_invalid_certs = cluster.insecure_skip_tls_verify == Some(true);
        config.tls_server_name = cluster.tls_server_name.clone();
        config.default_namespace = found.namespace.unwrap_or_else(|| "default".to_owned());
        config.proxy_url = proxy_url;
        let digest = digest(&config, pem.as_deref(), &headers, &login);
        Ok(Self { config, bundle, login, user: called, headers, files, digest })
    }
}

/// Returns [`Access::digest`]. `bundle`: the CA bundle in PEM form.
pub(super) fn digest(config: &kube::Config, bundle: Option<&[u8]>, headers: &HeaderMap, login: &Login) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&config.cluster_url, &config.proxy_url, &config.tls_server_name, config.accept_invalid_certs).hash(&mut hasher);
    headers.iter().for_each(|header| header.hash(&mut hasher));
    (bundle, login).hash(&mut hasher);
    hasher.finish()
}

fn has_credentials(user: &AuthInfo) -> bool {
    let has_certificate = user.client_certificate.is_some() || user.client_certificate_data.is_some();
    has_certificate || user.token.is_some() || user.token_file.is_some() || user.username.is_some()
}

/// Returns the login whose credential is in the kubeconfig or in a file that it names.
fn login(user: &AuthInfo, provider: &CryptoProvider, stored: impl FnOnce(Settings) -> Stored) -> Result<Login, String> {
    let (data, path) = (&user.client_certificate_data, &user.client_certificate);
    let identity = match pem("client-certificate", data.as_deref(), path.as_deref())? {
        None => None,
        Some(chain) => {
            let data = user.client_key_data.as_ref().map(|data| data.expose_secret());
            let key = pem("client-key", data, user.client_key.as_deref())?.unwrap_or_default();
            Some(Arc::new(identity::from_pem(&chain, &key, provider).map_err(|error| error.to_string())?))
        }
    };
    let oidc = user.auth_provider.as_ref().map(|provider| {
        check::auth_provider(&provider.name)?;
        let stored = stored(provider.config.clone());
        let key = format!("{}: {}", stored.file.display(), stored.user);
        Oidc::new(&provider.config, &key, identity.clone(), Box::new(stored))
    });
    let oidc = oidc.transpose()?;
    let token = user.token.as_ref().map(|token| token.expose_secret());
    let header = token.map(bearer).transpose().map_err(|error| error.to_string())?;
    if let Some(path) = &user.token_file {
        return open_token(path.clone(), token, identity).map(Login::TokenFile);
    }
    // As in client-go, a name without a password is sent, but not a password without a name.
    let password = user.password.as_ref().map(|password| password.expose_secret()).unwrap_or_default();
    let header = header.or_else(|| user.username.as_ref().and_then(|name| basic(name, password)));
    Ok(match oidc {
        // As in client-go, the provider is not used if there is another Authorization header.
        Some(oidc) if header.is_none() => Login::Oidc(Box::new(oidc)),
        _ => Login::Fixed(Credential::new(header, identity)),
    })
}

fn stored(merged: &Merged, user: &str, loaded: Settings) -> Stored {
    Stored { file: merged.file_of_user(user).cloned().unwrap_or_default(), user: user.to_owned(), loaded }
}

/// Returns the content of `KEY-data`, or of the file in `KEY`.
pub(super) fn pem(key: &str, data: Option<&str>, path: Option<&str>) -> Result<Option<Vec<u8>>, String> {
    match (data, path) {
        (Some(data), _) => LENIENT.decode(data).map(Some).map_err(|_| format!("{key}-data is not valid base64")),
        (None, Some(path)) => match fs::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => Err(format!("cannot read the {key} {path}: {}", reason(&error))),
        },
        (None, None) => Ok(None),
    }
}

pub(super) fn bundle_of(bytes: &[u8], path: Option<&str>, provider: &Arc<CryptoProvider>) -> Result<Bundle, String> {
    if bytes.is_empty() {
        // As in client-go, an empty file means that no certificate is trusted.
        return Ok(Bundle::new(Vec::new(), provider));
    }
    let place = path.map_or_else(|| "certificate-authority-data".to_owned(), |path| format!("the CA bundle {path}"));
    Bundle::from_pem(bytes, provider).map_err(|reason| format!("{place}: {reason}"))
}

pub(super) fn open_token(
    path: String,
    otherwise: Option<&str>,
    identity: Option<Arc<CertifiedKey>>,
) -> Result<TokenFile, String> {
    TokenFile::open(PathBuf::from(&path), otherwise, identity)
        .map_err(|error| format!("cannot use the token file {path}: {}", reason(&error)))
}
