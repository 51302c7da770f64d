//! The relay program: its sockets, its tasks, and the files that it reloads.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    pin::pin,
    sync::Arc,
};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::mpsc};
use tracing::{info, warn};

use super::{
    admin::{self, Reach},
    auth::{self, Key},
    expose::{Authority, Exposer, PodError, Relay},
    front::Front,
    server::{Limits, Options, PublicOrigin, Server},
    tls::Identity,
};
use crate::{config::watch::touched, drain::Drain, io::accept, listener::bind::reason, tls::Fingerprint};

/// Options of a relay.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Address for clients.
    pub control: SocketAddr,
    /// File with the keys. `None`: the key is in `$ADIT_SECRET`.
    pub keys: Option<PathBuf>,
    /// Certificate for clients. `None`: the relay generates one at each start.
    pub tls: Option<PemFiles>,
    /// `None`: the relay serves no names over HTTP.
    pub http: Option<HttpSettings>,
    /// Address of `/healthz`, `/readyz`, `/metrics` and the page of tunnels, for programs on this machine.
    pub admin: Option<SocketAddr>,
    /// Address of `/healthz`, `/readyz` and `/metrics`, without authentication.
    pub metrics: Option<SocketAddr>,
    /// Public ports.
    pub ports: RangeInclusive<u16>,
    /// Address of the public ports.
    pub bind: IpAddr,
    /// Serves version 1 too, in which the secret and all bytes cross the network in the clear.
    pub allow_v1: bool,
    /// Takes over Services of the cluster that the relay runs in: only in this namespace, or in all.
    pub register: Option<Option<String>>,
    /// How the relay authorizes takeovers.
    pub authority: Authority,
    pub limits: Limits,
}

/// Options of names over HTTP.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    pub listen: SocketAddr,
    /// Parent domain of all names.
    pub domain: String,
    /// Certificate for HTTPS. `None`: visitors use plain HTTP.
    pub tls: Option<PemFiles>,
    /// Origin in public addresses. `None`: the one of `listen`.
    pub public: Option<PublicOrigin>,
}

/// A certificate chain and its private key, each a PEM file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PemFiles {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// Reasons why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot read the secret")]
    Keys(#[source] io::Error),
    #[error("cannot listen on {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot use the certificate")]
    Certificate(#[source] io::Error),
    #[error("--register: cannot take over Services")]
    Register(#[from] PodError),
}

impl StartError {
    /// Returns the cause as text.
    pub fn cause(&self) -> String {
        match self {
            Self::Listen { source, .. } => reason(source),
            Self::Keys(error) | Self::Certificate(error) => error.to_string(),
            Self::Register(error) => error.to_string(),
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Keys(error) if error.kind() == io::ErrorKind::NotFound => {
                Some("'adit server genkey > FILE' makes one; name it with --secret-file, or set ADIT_SECRET".to_owned())
            }
            Self::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => Some(format!(
                "choose another port, or stop the program that has it: lsof -nP -iTCP:{} -sTCP:LISTEN",
                address.port()
            )),
            Self::Register(_) => Some(
                "run it in a pod with a service account: helm install relay charts/adit --set expose.enabled=true \
                 --set image.repository=REGISTRY/adit"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

/// A relay whose sockets are bound.
pub struct Bound {
    settings: Settings,
    control: TcpListener,
    http: Option<TcpListener>,
    admin: Option<TcpListener>,
    metrics: Option<TcpListener>,
    keys: Vec<Key>,
    identity: Identity,
    https: Option<Arc<ServerConfig>>,
    cluster: Option<(kube::Client, Relay)>,
}

impl Bound {
    /// Reads the files and binds the sockets. Must run in a tokio runtime.
    ///
    /// # Errors
    /// Fails if a file cannot be used, an address is in use, or the relay does not run in a pod that may take over
    /// Services.
    pub fn bind(mut settings: Settings) -> Result<Self, StartError> {
        let listen = |address: SocketAddr| {
            let address = SocketAddr::new(usable(address.ip()), address.port());
            accept::listen_dual(address).map_err(|source| StartError::Listen { address, source })
        };
        settings.bind = usable(settings.bind);
        let keys = auth::load(settings.keys.as_deref()).map_err(StartError::Keys)?;
        let identity = match &settings.tls {
            Some(files) => Identity::read(&files.chain, &files.key),
            None => Identity::generate(),
        };
        let identity = identity.map_err(StartError::Certificate)?;
        let https = settings.http.as_ref().and_then(|http| http.tls.as_ref());
        let https = https.map(https_config).transpose().map_err(StartError::Certificate)?;
        let cluster = match &settings.register {
            Some(_) => Some((in_cluster()?, Relay::of_this_pod(settings.bind)?)),
            None => None,
        };
        let control = listen(settings.control)?;
        let http = settings.http.as_ref().map(|http| listen(http.listen)).transpose()?;
        let admin = settings.admin.map(listen).transpose()?;
        let metrics = settings.metrics.map(listen).transpose()?;
        Ok(Self { settings, control, http, admin, metrics, keys, identity, https, cluster })
    }

    /// Returns the address for clients.
    ///
    /// # Errors
    /// Fails if the system does not return it.
    pub fn control(&self) -> io::Result<SocketAddr> {
        self.control.local_addr()
    }

    /// Returns the scheme (`http` or `https`) and the address of the listener for names.
    pub fn http(&self) -> Option<(&'static str, SocketAddr)> {
        let address = self.http.as_ref()?.local_addr().ok()?;
        Some((if self.https.is_some() { "https" } else { "http" }, address))
    }

    /// Returns the address of the admin endpoints.
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.local_addr().ok()
    }

    /// Returns the address of the metrics endpoint.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics.as_ref()?.local_addr().ok()
    }

    /// Returns the fingerprint of the certificate: `sha256:` and 64 hexadecimal digits.
    pub fn fingerprint(&self) -> Fingerprint {
        self.identity.fingerprint()
    }

    /// Serves until `drain` starts, then waits for streams in progress for the grace period of [`Limits::accepted`].
    ///
    /// # Errors
    /// Fails if the certificate and the key do not match.
    pub async fn run(self, drain: Drain) -> Result<(), StartError> {
        let settings = self.settings;
        let http_port = self.http.as_ref().and_then(|http| http.local_addr().ok()).map(|address| address.port());
        let own = PublicOrigin::new(self.https.is_some(), http_port);
        let public = settings.http.as_ref().and_then(|http| http.public);
        let domain = settings.http.as_ref().map(|http| http.domain.trim_matches('.').to_ascii_lowercase());
        let only = settings.register.clone().flatten();
        let exposer =
            self.cluster.map(|(client, relay)| Exposer::start(client, relay, only, settings.authority, drain.clone()));
        let options = Options {
            keys: self.keys,
            ports: settings.ports.clone(),
            bind: settings.bind,
            domain: domain.clone(),
            http_public: public.unwrap_or(own),
            allow_v1: settings.allow_v1,
            limits: settings.limits,
            exposer,
        };
        let front = Front::new(domain.unwrap_or_default(), public, self.https.is_some());
        let names = front.clone();
        let relay_config = self.identity.relay_config().map_err(StartError::Certificate)?;
        let server = Server::new(options, relay_config, drain.clone(), move |all, awaited| names.set(all, awaited));
        let https = self.https.map(|config| Arc::new(ArcSwap::new(config)));
        drain.spawn(server.clone().serve(self.control));
        drain.spawn(follow(settings.clone(), server.clone(), https.clone(), drain.clone()));
        if let Some(listener) = self.http {
            drain.spawn(front.serve(listener, server.clone(), https, drain.clone()));
        }
        // The admin listeners answer until the end of the drain, so the drain must not wait for them.
        let serve = async |listener: Option<TcpListener>, reach| match listener {
            Some(listener) => admin::serve(listener, server.clone(), reach, drain.clone()).await,
            None => std::future::pending::<Infallible>().await,
        };
        let mut answering = pin!(async {
            tokio::select! {
                never = serve(self.admin, Reach::Machine) => never,
                never = serve(self.metrics, Reach::Network) => never,
            }
        });
        tokio::select! {
            () = drain.started() => {}
            never = answering.as_mut() => match never {},
        }
        let grace = settings.limits.accepted.grace;
        info!("stopping: streams in progress have {grace:?}");
        tokio::select! {
            _ = drain.finish(grace) => {}
            never = answering.as_mut() => match never {},
        }
        Ok(())
    }
}

/// Returns an address to bind: `0.0.0.0` instead of `::` on a machine without IPv6.
fn usable(address: IpAddr) -> IpAddr {
    let has_ipv6 = || std::net::UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    match address == Ipv6Addr::UNSPECIFIED && !has_ipv6() {
        true => Ipv4Addr::UNSPECIFIED.into(),
        false => address,
    }
}

/// Returns a client that uses the service account of this pod.
fn in_cluster() -> Result<kube::Client, PodError> {
    let mut config = kube::Config::incluster().map_err(|_| PodError::NoServiceAccount)?;
    // A takeover repeats its own calls, because only it knows whether a lost answer matters.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|_| PodError::ServiceAccount)
}

fn https_config(files: &PemFiles) -> io::Result<Arc<ServerConfig>> {
    Identity::read(&files.chain, &files.key)?.server_config(&[b"h2", b"http/1.1"])
}

/// Reloads keys and certificates when their files change, for example after a Secret update or a certificate renewal.
/// Open connections keep the old ones. A file that cannot be used changes nothing.
async fn follow(settings: Settings, server: Arc<Server>, https: Option<Arc<ArcSwap<ServerConfig>>>, drain: Drain) {
    let tls = settings.tls.clone();
    let of_names = settings.http.and_then(|http| http.tls);
    let pems = tls.iter().chain(&of_names).flat_map(|files| [files.chain.clone(), files.key.clone()]);
    let files: Vec<PathBuf> = settings.keys.iter().cloned().chain(pems).collect();
    if files.is_empty() {
        return;
    }
    let (touched_tx, mut changes) = mpsc::channel(1);
    let watching = touched(files, touched_tx);
    let mut watching = pin!(watching);
    loop {
        tokio::select! {
            () = watching.as_mut() => return,
            Some(()) = changes.recv() => {}
            () = drain.started() => return,
        }
        if let Some(file) = &settings.keys {
            match auth::load(Some(file)) {
                Ok(keys) => server.set_keys(keys),
                Err(error) => warn!(%error, "relay: keys not read again; the old ones are still in use"),
            }
        }
        if let Some(files) = &tls {
            match Identity::read(&files.chain, &files.key).and_then(|new| Ok((new.relay_config()?, new.fingerprint())))
            {
                Ok((config, fingerprint)) => {
                    server.set_tls(config);
                    info!(identity = %fingerprint, "relay: certificate read again");
                }
                Err(error) => warn!(%error, "relay: certificate not read again; the old one is still in use"),
            }
        }
        if let (Some(files), Some(https)) = (&of_names, &https) {
            match https_config(files) {
                Ok(config) => {
                    https.store(config);
                    info!(file = %files.chain.display(), "relay: certificate of the domain read again");
                }
                Err(error) => {
                    warn!(%error, "relay: certificate of the domain not read again; the old one is still in use");
                }
            }
        }
    }
}
