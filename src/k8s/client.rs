//! Client of one context of a kubeconfig.

mod answer;
mod authorize;
mod clusters;
mod connection;
mod contact;
mod failure;
mod one_at_a_time;
mod transport;

use std::{
    collections::HashSet,
    future::Future,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use http::{HeaderValue, Uri, header::PROXY_AUTHORIZATION};
use kube::client::{Body, ClientBuilder, ConfigExt};
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tower::ServiceBuilder;
use tracing::debug;

use self::{
    authorize::Authorized,
    contact::Contact,
    transport::{Transport, Transports, tls_config},
};
pub use self::{
    clusters::{Clusters, Health},
    failure::is_of_policy,
};
use crate::{
    config::ContextName,
    k8s::{
        ClusterError, Namespaces,
        credential::Credential,
        credentials::{User, first_expiry},
        dial::{Connector, Dialer},
        kubeconfig::Access,
        kubectl::{adit, kubectl},
        proxy,
        sign_in::SignIns,
        spare::Spare,
        transports,
    },
    routing::ClusterId,
    telemetry::reasons,
};

/// Timeout of one request to an API server, including its answer. kubectl has none, and gateways that wake up a cluster
/// take 12 s and more.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// Maximum number of different missing permissions that are logged.
const MOST_SAID: usize = 256;

/// One cluster as one user: the API client, and the settings for upgrades.
pub struct Cluster {
    pub context: ContextName,
    /// See [`Self::kubectl`].
    kubectl: String,
    adit: String,
    pub client: kube::Client,
    /// Client for watches and other requests that no client waits for: they start no sign-in.
    pub watches: kube::Client,
    /// Connector for upgrades, which each need their own connection.
    pub(super) connector: Connector,
    pub(super) spare: Spare<Arc<Transport>>,
    /// URL of the API server, e.g. `https://10.0.0.1:6443/k8s/clusters/c-1`. Upgrades keep its path prefix.
    pub server: Uri,
    pub dialer: Dialer,
    /// Name to verify the API server's certificate against. `None`: `http://`.
    pub tls_server_name: Option<ServerName<'static>>,
    /// Proxy for requests, without its credentials.
    pub proxy: Option<String>,
    /// Transports that the servers behind this context support.
    pub(super) port_forwards: transports::Memory<transports::Transport>,
    pub(super) execs: transports::Memory<transports::ExecTransport>,
    said: Mutex<HashSet<String>>,
    user: User,
    transports: Arc<Transports>,
    pub(super) contact: Contact,
    /// That of the [`Access`].
    digest: u64,
    replaced: CancellationToken,
}

/// Credentials of a context's user, and their expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignedIn {
    /// The kubeconfig has no credentials.
    Anonymous,
    /// No known expiry.
    Unlimited,
    /// `what`: what expires, for example `token`.
    Until { what: &'static str, at: SystemTime },
}

impl Cluster {
    fn make(id: &ClusterId, access: Access, sign_ins: &SignIns) -> Result<Self, ClusterError> {
        let context = id.context.clone();
        let unusable = |reason: String| ClusterError::Kubeconfig { reason: format!("context {context}: {reason}") };
        let Access { config, bundle, login, user, headers, files: _, digest } = access;
        let tls = tls_config(&config, bundle)
            .map_err(|error| unusable(format!("the CA bundle of the system cannot be used: {}", reasons(&error))))?;
        let dialer = Dialer::new(config.proxy_url.as_ref(), &tls).map_err(unusable)?;
        let server_name = match config.tls_server_name.as_deref().map(server_name) {
            Some(Err(_)) if !config.accept_invalid_certs => {
                return Err(unusable("tls-server-name is not a host name".to_owned()));
            }
            name => name.and_then(Result::ok),
        };
        let is_https = config.cluster_url.scheme_str() == Some("https");
        let server_name = match server_name {
            None if is_https => Some(
                self::server_name(config.cluster_url.host().unwrap_or_default())
                    .map_err(|_| unusable(format!("server is {}, which has no host name", config.cluster_url)))?,
            ),
            name => name.filter(|_| is_https),
        };
        let transports = Arc::new(Transports::new(tls, dialer.clone(), server_name.clone()));
        let user = User::new(login.method(&user, sign_ins), headers);
        // A proxy that forwards whole requests expects its own header in each of them.
        let to_proxy = dialer.forwards(&config.cluster_url).flatten();
        let to_proxy = to_proxy.and_then(|value| HeaderValue::try_from(value).ok());
        let client = |authorized: Authorized| {
            let to_proxy = to_proxy.clone();
            let with_proxy = move |mut request: http::Request<Body>| {
                request.headers_mut().extend(to_proxy.clone().map(|value| (PROXY_AUTHORIZATION, value)));
                request
            };
            let layers = ServiceBuilder::new().layer(config.base_uri_layer());
            let service = layers.map_request(with_proxy).service(authorized);
            ClientBuilder::new(service, config.default_namespace.clone()).build()
        };
        let contact = Contact::default();
        let requests = client(Authorized::requests(user.clone(), transports.clone(), contact.clone()));
        let watches = client(Authorized::watches(user.clone(), transports.clone(), contact.clone()));

        let connector =
            Connector { dialer: dialer.clone(), server: config.cluster_url.clone(), server_name: server_name.clone() };
        Ok(Self {
            spare: spare(connector.clone(), user.clone(), transports.clone()),
            connector,
            client: requests,
            watches,
            said: Mutex::default(),
            proxy: config.proxy_url.as_ref().map(proxy::without_credentials),
            server: config.cluster_url,
            dialer,
            tls_server_name: server_name,
            port_forwards: transports::Memory::default(),
            execs: transports::Memory::default(),
            user,
            transports,
            contact,
            kubectl: kubectl(id),
            adit: adit(id),
            context,
            digest,
            replaced: CancellationToken::new(),
        })
    }

    /// Cancelled once the context leads to another cluster or user: new streams need a new session.
    pub fn replaced(&self) -> &CancellationToken {
        &self.replaced
    }

    /// Returns the start of a kubectl command for this context, quoted for any shell.
    pub fn kubectl(&self) -> &str {
        &self.kubectl
    }

    /// Returns the start of an adit command that uses this context.
    pub fn adit(&self) -> &str {
        &self.adit
    }

    /// Returns whether this is the first call with `text`, so that a missing permission is logged once. Returns `false` for
    /// more than [`MOST_SAID`] texts: made-up names of namespaces must not fill the memory or the log.
    pub(super) fn is_first(&self, text: &str) -> bool {
        let mut said = self.said.lock().expect("no panic while the lock is held");
        said.len() < MOST_SAID && said.insert(text.to_owned())
    }

    /// Returns whether a request needs no sign-in. Requests that nobody waits for start none.
    pub fn has_credential(&self) -> bool {
        self.user.present().is_some()
    }

    /// Returns the user of the requests.
    pub(super) fn user(&self) -> &User {
        &self.user
    }

    /// Returns the credential for an upgrade. Signs in if there is none.
    pub(super) async fn credential(&self) -> Result<Arc<Credential>, ClusterError> {
        self.user.credential().await.map_err(|failure| self.not_signed_in(failure))
    }

    /// Returns the bearer token of the user. Signs in if there is none. `None`: the user has a certificate or a password.
    ///
    /// # Errors
    /// Fails if the sign-in fails.
    pub async fn bearer_token(&self) -> Result<Option<String>, ClusterError> {
        let credential = self.credential().await?;
        let header = credential.header.as_ref().and_then(|header| header.to_str().ok());
        Ok(header.and_then(|header| header.strip_prefix("Bearer ")).map(str::to_owned))
    }

    /// Signs in, and returns which credentials the user has.
    ///
    /// # Errors
    /// Fails if the sign-in fails.
    pub async fn signed_in(&self) -> Result<SignedIn, ClusterError> {
        let credential = self.credential().await?;
        Ok(match first_expiry(&credential) {
            Some((what, at)) => SignedIn::Until { what, at },
            None if self.user.is_named(&credential) => SignedIn::Unlimited,
            None => SignedIn::Anonymous,
        })
    }

    /// Returns the reason for a failed connection as text.
    pub fn why_unreachable(&self, error: &(dyn std::error::Error + 'static)) -> String {
        let error = self.unreachable(error);
        error.cause().unwrap_or_else(|| error.to_string())
    }

    /// Returns the error for an answer with this status.
    pub fn refused(&self, status: u16, message: &str) -> ClusterError {
        self.refusal(status, message, Namespaces::All)
    }

    /// Returns the connections and their settings for the client certificate of a credential.
    pub(super) fn transport(&self, credential: &Credential) -> Arc<Transport> {
        self.transports.of(credential.identity.as_ref())
    }

    /// Waits for an answer of the API server, and translates errors. `doing`: for example `looking up service shop/web`.
    ///
    /// # Errors
    /// The API server does not have the object, or the request failed: refused, without an answer in time, or without a connection.
    pub async fn ask<T>(
        &self,
        doing: &str,
        namespaces: impl Into<Namespaces>,
        answer: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, AskError> {
        self.ask_for(REQUEST_TIMEOUT, doing, namespaces, answer).await
    }

    /// Like [`ask`](Self::ask), with another timeout.
    pub(super) async fn ask_for<T>(
        &self,
        after: Duration,
        doing: &str,
        namespaces: impl Into<Namespaces>,
        answer: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, AskError> {
        match self.within(after, answer).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(kube::Error::Api(status))) if failure::is_about_object(&status) => Err(AskError::NotFound),
            Some(Err(error)) => Err(AskError::Failed(self.translate(namespaces.into(), error))),
            None => {
                self.contact.note(false);
                Err(AskError::Failed(self.timed_out(doing.to_owned(), after)))
            }
        }
    }

    /// Runs `work` with a time limit that pauses during a sign-in. `None`: the limit was reached.
    pub async fn within<T>(&self, budget: Duration, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        let mut deadline = Instant::now() + budget;
        loop {
            if let Ok(done) = timeout_at(deadline, &mut work).await {
                return Some(done);
            }
            deadline = self.user.sign_in()?.report().put_off(budget, Instant::now())?;
        }
    }
}

/// Returns the name to verify a certificate against. As in Go, an IPv4-mapped IPv6 address counts as IPv4. Drops the zone
/// of an address, which is only valid on this machine.
fn server_name(host: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    let host = host.trim_matches(['[', ']']);
    let host = host.split_once('%').map_or(host, |(address, _)| address);
    match host.parse::<IpAddr>() {
        Ok(address) => Ok(ServerName::from(address.to_canonical())),
        Err(_) => ServerName::try_from(host.to_owned()),
    }
}

/// Returns a spare connection that uses the current credential. Never starts a sign-in.
fn spare(connector: Connector, user: User, transports: Arc<Transports>) -> Spare<Arc<Transport>> {
    Spare::new(Box::new(move || {
        let (connector, user, transports) = (connector.clone(), user.clone(), transports.clone());
        Box::pin(async move {
            let credential = user.present()?;
            let transport = transports.of(credential.identity.as_ref());
            let connected = connector.connect(transport.upgrades.clone()).await;
            let io = connected.inspect_err(|error| debug!(?error, "no spare connection to the API server")).ok()?;
            Some((transport, io))
        })
    }))
}

/// Reasons why the API server gave no usable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AskError {
    /// 404 of an API server for an object. The caller knows which.
    NotFound,
    Failed(ClusterError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_names_of_certificates_in_every_form() {
        for (host, wanted) in [
            ("[::ffff:127.0.0.1]", "127.0.0.1"),
            ("[::1]", "::1"),
            ("[fe80::1%25eth0]", "fe80::1"),
            ("10.0.0.1", "10.0.0.1"),
            ("a.test", "a.test"),
        ] {
            assert_eq!(server_name(host).unwrap().to_str(), wanted);
        }
        assert!(server_name("a b").is_err());
    }
}
