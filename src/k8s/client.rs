//! Clients for the contexts of a kubeconfig.

mod failure;
mod reach;

use std::{
    collections::{HashMap, HashSet},
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderMap, Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::{AuthError, Body, ClientBuilder, ConfigExt};
use rustls::{pki_types::ServerName, sign::CertifiedKey};
use tokio::{runtime::Handle, sync::OnceCell, time::timeout};
use tower::{BoxError, Layer, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};

pub use self::failure::printable;
use self::failure::{auth_error, sign_in_error};
use crate::{
    config::{ContextName, KubeconfigPaths, Namespace},
    k8s::{
        ClusterError,
        dial::Dialer,
        exec_path::ExecPath,
        kubeconfig::{self, Access, Fingerprint},
        proxy, upgrade,
    },
    routing::{ClusterId, Contexts},
    tls::{Pinned, bundle::Bundle, identity},
};

/// A credential plugin may open a browser and wait for a person.
const SIGN_IN_TIMEOUT: Duration = Duration::from_secs(120);

/// How long one request to an API server may take, answer included.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection to an API server is kept after the last request, and after the last watch on it.
const IDLE: Duration = Duration::from_secs(60);
const IDLE_WATCHES: Duration = Duration::from_secs(5);

/// All clusters that the kubeconfigs describe; one cached [`Cluster`] for each that was used.
pub struct Clusters {
    exec_path: Mutex<ExecPath>,
    made: Mutex<HashMap<ClusterId, Entry>>,
}

struct Entry {
    files: Fingerprint,
    cluster: Arc<OnceCell<Arc<Cluster>>>,
}

/// One cluster as one user: the API client, and what an upgrade needs beside it.
pub struct Cluster {
    pub context: ContextName,
    /// The namespace that the context names, else `default`.
    pub namespace: Namespace,
    /// For requests and watches: HTTP/2 where the server has it.
    pub client: kube::Client,
    /// The same on a connection of its own: watches take up the streams that an API server allows on one.
    pub watches: kube::Client,
    /// The API server, e.g. `https://10.0.0.1:6443/k8s/clusters/c-1`: upgrades keep its path prefix.
    pub server: Uri,
    pub dialer: Dialer,
    /// For upgrades: the cluster's roots and client certificate, ALPN `http/1.1`. None: `http://`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The name that the API server's certificate is verified against.
    pub tls_server_name: Option<ServerName<'static>>,
    /// The proxy that requests pass through, without its credentials.
    pub proxy: Option<String>,
    /// What the servers behind this context take.
    pub(super) port_forwards: upgrade::Memory<upgrade::Transport>,
    pub(super) execs: upgrade::Memory<upgrade::exec::ExecTransport>,
    said: Mutex<HashSet<String>>,
    authorize: BoxCloneSyncService<Request<Body>, Response<()>, BoxError>,
    /// Whether tokens expire and are renewed.
    is_refreshed: bool,
}

impl Clusters {
    /// `exec_path`: folders in front of PATH for credential plugins.
    pub fn new(exec_path: &[PathBuf]) -> Arc<Self> {
        Arc::new(Self { exec_path: Mutex::new(ExecPath::new(exec_path)), made: Mutex::default() })
    }

    /// Replaces the folders in front of PATH, for clusters that are made from now on.
    pub fn set_exec_path(&self, exec_path: &[PathBuf]) {
        *self.exec_path.lock().expect("no panic while the lock is held") = ExecPath::new(exec_path);
    }

    /// Reads the kubeconfig files and returns what names and routes need of them. Never fails: see [`Contexts::problem`].
    pub fn contexts(&self, paths: &Arc<KubeconfigPaths>) -> Contexts {
        kubeconfig::contexts(paths)
    }

    /// Returns the cluster, made at its first use; made again when its kubeconfig files have changed. Callers that
    /// come at the same time share one sign-in.
    pub async fn get(&self, id: &ClusterId) -> Result<Arc<Cluster>, ClusterError> {
        let files = Fingerprint::of(&id.kubeconfig);
        let made = {
            let mut made = self.made.lock().expect("no panic while the lock is held");
            made.retain(|other, entry| other.kubeconfig != id.kubeconfig || entry.files == files);
            made.get(id).and_then(|entry| entry.cluster.get().cloned())
        };
        if let Some(cluster) = made {
            return Ok(cluster);
        }
        let exec_path = self.exec_path.lock().expect("no panic while the lock is held").clone();
        // Loads before it keeps an entry: made-up context names in hostnames must not fill the map.
        let access = kubeconfig::load(id, &exec_path)?;
        let cluster = {
            let mut made = self.made.lock().expect("no panic while the lock is held");
            let entry = made.entry(id.clone()).or_insert_with(|| Entry { files, cluster: Arc::default() });
            entry.cluster.clone()
        };
        cluster.get_or_try_init(|| Cluster::make(id, access)).await.cloned()
    }

    /// Forgets a cluster whose credentials were refused, so that the next use signs in again.
    pub fn forget(&self, id: &ClusterId) {
        self.made.lock().expect("no panic while the lock is held").remove(id);
    }
}

impl Cluster {
    async fn make(id: &ClusterId, access: Access) -> Result<Arc<Self>, ClusterError> {
        let context = id.context.clone();
        // kube runs the credential plugin while it builds these, and blocks.
        let sign_in = tokio::task::spawn_blocking(move || Self::build(context, access));
        match timeout(SIGN_IN_TIMEOUT, sign_in).await {
            Ok(Ok(made)) => made.map(Arc::new),
            Ok(Err(panic)) => Err(ClusterError::Protocol { context: id.context.clone(), reason: panic.to_string() }),
            Err(_) => Err(ClusterError::TimedOut {
                context: id.context.clone(),
                doing: "signing in".into(),
                after: SIGN_IN_TIMEOUT,
            }),
        }
    }

    fn build(context: ContextName, access: Access) -> Result<Self, ClusterError> {
        let failed = |error: kube::Error| sign_in_error(&context, error);
        let unusable = |reason: String| ClusterError::Kubeconfig { reason: format!("context {context}: {reason}") };
        let Access { mut config, bundle, identity, token_file } = access;
        let auth = config.auth_layer().map_err(failed)?;
        if auth.is_some() {
            // A plugin that gives a token has no certificate: it need not be run again to be asked for one.
            config.auth_info.exec = None;
        }
        let mut tls = tls_config(&config, bundle, identity).map_err(failed)?;
        let dialer = Dialer::new(config.proxy_url.as_ref(), &tls).map_err(unusable)?;
        let server_name = config.tls_server_name.clone().map(ServerName::try_from).transpose();
        let server_name = server_name.map_err(|_| unusable("tls-server-name is no host name".to_owned()))?;

        let mut https = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
        if let Some(name) = &server_name {
            https = https.with_server_name_resolver(hyper_rustls::FixedServerNameResolver::new(name.clone()));
        }
        let https = https.enable_all_versions().wrap_connector(dialer.clone());
        let http = |idle: Duration| {
            hyper_util::client::legacy::Client::builder(TokioExecutor::new())
                // A connection that a sleeping laptop has lost is found out, and not waited for.
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(idle)
                .http2_keep_alive_interval(Duration::from_secs(10))
                .http2_keep_alive_timeout(Duration::from_secs(5))
                .build::<_, Body>(https.clone())
        };
        let headers = config.extra_headers_layer().map_err(failed)?;
        let client = |idle: Duration| {
            let service = ServiceBuilder::new()
                .layer(config.base_uri_layer())
                .option_layer(auth.as_ref())
                .option_layer(token_file.clone())
                .layer(headers.clone())
                .map_err(BoxError::from)
                .service(http(idle));
            ClientBuilder::new(service, config.default_namespace.clone()).build()
        };
        let (client, watches) = (client(IDLE), client(IDLE_WATCHES));

        // What the layers add to a request, without sending one.
        let echo = tower::service_fn(|request: Request<Body>| async move {
            let mut echo = Response::new(());
            *echo.headers_mut() = request.into_parts().0.headers;
            Ok::<_, BoxError>(echo)
        });
        let echo = ServiceBuilder::new().option_layer(token_file).layer(headers).service(echo);
        let is_refreshed = auth.is_some();
        let authorize = match auth {
            Some(auth) => BoxCloneSyncService::new(Shared::new(auth.layer(echo))),
            None => BoxCloneSyncService::new(Shared::new(echo)),
        };

        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let is_https = config.cluster_url.scheme_str() == Some("https");
        let host = config.cluster_url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let server_name = match server_name {
            None if is_https => Some(
                ServerName::try_from(host)
                    .map_err(|_| unusable(format!("server is {}, which has no host name", config.cluster_url)))?,
            ),
            name => name,
        };
        Ok(Self {
            namespace: Namespace(config.default_namespace.clone()),
            client,
            watches,
            said: Mutex::default(),
            proxy: config.proxy_url.as_ref().map(proxy::without_credentials),
            server: config.cluster_url,
            dialer,
            tls: is_https.then(|| Arc::new(tls)),
            tls_server_name: server_name,
            port_forwards: upgrade::Memory::default(),
            execs: upgrade::Memory::default(),
            authorize,
            is_refreshed,
            context,
        })
    }

    /// Returns whether nobody has asked this of `text` before: a missing permission is said once.
    pub(super) fn is_first(&self, text: &str) -> bool {
        self.said.lock().expect("no panic while the lock is held").insert(text.to_owned())
    }

    /// Returns the headers that authenticate an upgrade: Authorization, impersonation. Refreshes what has expired.
    pub async fn auth_headers(&self) -> Result<HeaderMap, ClusterError> {
        let authorize = self.authorize.clone().oneshot(Request::new(Body::empty()));
        let authorized = async {
            match self.is_refreshed {
                false => authorize.await,
                // kube runs a credential plugin while it waits, and blocks its thread: every connection would stall.
                true => {
                    let runtime = Handle::current();
                    let refreshing = tokio::task::spawn_blocking(move || runtime.block_on(authorize));
                    refreshing.await.unwrap_or_else(|panic| Err(panic.into()))
                }
            }
        };
        match timeout(SIGN_IN_TIMEOUT, authorized).await {
            Ok(Ok(echo)) => Ok(echo.into_parts().0.headers),
            Ok(Err(error)) => Err(match error.downcast::<AuthError>() {
                Ok(error) => auth_error(&self.context, &error),
                Err(error) => {
                    ClusterError::Credentials { context: self.context.clone(), reason: error.to_string(), hint: None }
                }
            }),
            Err(_) => Err(ClusterError::TimedOut {
                context: self.context.clone(),
                doing: "signing in".into(),
                after: SIGN_IN_TIMEOUT,
            }),
        }
    }

    /// Waits for an answer of the API server, translating what went wrong. `doing`: `looking up service shop/web`.
    pub async fn ask<T>(
        &self,
        doing: &str,
        namespace: &Namespace,
        answer: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, AskError> {
        if self.is_refreshed {
            // The request finds a token that is fresh; it tells itself what is wrong with one that is not.
            let _ = self.auth_headers().await;
        }
        match timeout(REQUEST_TIMEOUT, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(AskError::NotFound),
            Ok(Err(error)) => Err(AskError::Failed(self.translate(namespace, error))),
            Err(_) => Err(AskError::Failed(ClusterError::TimedOut {
                context: self.context.clone(),
                doing: doing.to_owned(),
                after: REQUEST_TIMEOUT,
            })),
        }
    }
}

/// Returns the TLS settings for requests. kube adds the client certificate of a plugin.
fn tls_config(
    config: &kube::Config,
    bundle: Option<Bundle>,
    identity: Option<CertifiedKey>,
) -> kube::Result<rustls::ClientConfig> {
    let mut config = config.clone();
    if bundle.is_some() || config.accept_invalid_certs {
        // Else kube would load the system's CA bundle, for nothing.
        config.root_cert = Some(Vec::new());
    }
    let mut tls = config.rustls_client_config()?;
    if config.accept_invalid_certs {
        let provider = tls.crypto_provider().clone();
        tls.dangerous().set_certificate_verifier(Pinned::to_nothing(provider));
    } else if let Some(bundle) = bundle {
        tls.dangerous().set_certificate_verifier(Arc::new(bundle));
    }
    if let Some(identity) = identity {
        tls.client_auth_cert_resolver = identity::resolver(identity);
    }
    Ok(tls)
}

/// Why the API server gave no answer to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskError {
    /// 404: the caller knows what it asked for.
    NotFound,
    Failed(ClusterError),
}

/// Lets a service that is `Clone` but not `Sync` be shared.
struct Shared<S>(Arc<Mutex<S>>);

impl<S: Clone> Shared<S> {
    fn new(service: S) -> Self {
        Self(Arc::new(Mutex::new(service)))
    }
}

impl<S> Clone for Shared<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> tower::Service<Request<Body>> for Shared<S>
where
    S: tower::Service<Request<Body>, Response = Response<()>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    type Response = Response<()>;
    type Error = BoxError;
    type Future = futures::future::BoxFuture<'static, Result<Response<()>, BoxError>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), BoxError>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = self.0.lock().expect("no panic while the lock is held").clone();
        Box::pin(async move { service.oneshot(request).await.map_err(Into::into) })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_plugin_that_gives_a_token_is_run_once() {
        let folder = tempfile::tempdir().unwrap();
        let (path, runs) = (folder.path().join("config"), folder.path().join("runs"));
        let credential = json!({
            "apiVersion": "client.authentication.k8s.io/v1",
            "kind": "ExecCredential",
            "status": {"token": "secret", "expirationTimestamp": "2999-01-01T00:00:00Z"},
        });
        let script = format!("echo run >> '{}'; echo '{credential}'", runs.display());
        let exec = json!({"apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script]});
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {"exec": exec}}],
            "contexts": [{"name": "one", "context": {"cluster": "c", "user": "u"}}],
        });
        fs::write(&path, kubeconfig.to_string()).unwrap();
        let paths: Vec<PathBuf> = vec![path];
        let id = ClusterId { kubeconfig: Arc::new(KubeconfigPaths(paths)), context: ContextName("one".into()) };
        let cluster = Clusters::new(&[]).get(&id).await.unwrap();
        assert_eq!(cluster.auth_headers().await.unwrap()["authorization"], "Bearer secret");
        assert_eq!(fs::read_to_string(runs).unwrap(), "run\n");
    }

    #[tokio::test]
    async fn a_context_that_does_not_exist_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "contexts": [{"name": "one", "context": {"cluster": "c"}}],
        });
        fs::write(&path, kubeconfig.to_string()).unwrap();
        let kubeconfig = Arc::new(KubeconfigPaths(vec![path]));
        let id = |context: &str| ClusterId { kubeconfig: kubeconfig.clone(), context: ContextName(context.into()) };
        let clusters = Clusters::new(&[]);
        for name in ["two", "three"] {
            let refused = clusters.get(&id(name)).await.err().unwrap();
            assert!(matches!(refused, ClusterError::UnknownContext { .. }), "{refused}");
        }
        assert!(clusters.made.lock().unwrap().is_empty());
    }
}
