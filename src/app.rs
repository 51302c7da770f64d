//! Composes the application, binds its sockets, and runs it.

pub mod forwards;
pub mod opened;
mod opener;
pub mod private_proxy;
pub mod reach;
mod replayer;
mod running;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use tokio::{task::spawn_blocking, time::timeout};
use tracing::{debug, warn};

use self::{forwards::Forwards, opener::Opening, replayer::Replaying, running::Running};
use crate::{
    admin::{
        api::source::{Facts, Parts, Source},
        endpoints::{self, Reach},
        keys::Keys,
        socket::AdminSocket,
    },
    backend::{Backend, Backends},
    config::{Config, ContextName, KubeconfigPaths, Namespace, SniBackend, listen::overlap},
    dashboard::{Dashboard, assets::Assets},
    drain::Drain,
    frontend::{
        forward::Forward,
        http::{HttpFrontend, proxy_connect::ConnectFrontend},
        postgres::PostgresFrontend,
        sni::SniFrontend,
        socks::SocksFrontend,
        tcp::TcpFrontend,
        tls::TlsFrontend,
    },
    journal::{Journal, audit::Audit},
    k8s::client::Clusters,
    listener::{
        bind::{self, Kind, Sockets},
        inherited::Inherited,
        mux::{ForwardFrontends, Mux},
        ports::{Frontends, Ports},
    },
    metrics::Metrics,
    routing::{Router, SharedRouter},
    telemetry::Verbosity,
    tunnel::Manager,
};

pub use crate::listener::bind::BindError;

/// Time limit of the open of an audit log.
const AUDIT_WITHIN: Duration = Duration::from_secs(5);

/// Command-line options that override the file, also after a reload.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub context: Option<ContextName>,
    /// Namespace of routes that set none.
    pub namespace: Option<Namespace>,
    pub kubeconfig: Option<KubeconfigPaths>,
    pub listen: Option<Vec<SocketAddr>>,
    pub verbose: bool,
}

impl Overrides {
    /// Applies the options to the configuration of the file.
    pub fn apply(&self, config: &mut Config) {
        config.verbose |= self.verbose;
        if let Some(context) = &self.context {
            config.default_context = Some(config.context_named(context.clone()));
        }
        if let Some(namespace) = &self.namespace {
            let http = config.http.routes.values_mut().map(|route| &mut route.destination);
            let tcp = config.tcp.routes.values_mut().map(|route| &mut route.destination);
            let sni = config.sni.iter_mut().flat_map(|sni| sni.routes.values_mut());
            let sni = sni.filter_map(|route| match &mut route.backend {
                SniBackend::Kubernetes(destination) => Some(&mut **destination),
                SniBackend::Command(_) => None,
            });
            for destination in http.chain(tcp).chain(sni) {
                destination.namespace.get_or_insert_with(|| namespace.clone());
            }
        }
        if let Some(paths) = &self.kubeconfig {
            config.http.kubeconfig = paths.clone();
            config.tcp.kubeconfig = paths.clone();
        }
        if let Some(listen) = &self.listen {
            config.http.listen = listen.clone();
            for route in config.tcp.routes.values_mut() {
                route.also = route.also.filter(|also| !listen.iter().any(|listen| overlap(*listen, *also)));
            }
        }
    }

    /// Names `--listen` in the error, if the option set the address.
    pub fn explain(&self, error: BindError) -> BindError {
        match (error.kind, &self.listen) {
            (Kind::Http, Some(_)) => BindError { asked_by: "--listen".to_owned(), ..error },
            _ => error,
        }
    }
}

/// The whole program before it binds its sockets.
#[derive(Default)]
pub struct App {
    pub overrides: Overrides,
    /// File to follow. `None`: the configuration never changes.
    pub file: Option<PathBuf>,
    /// Log filter, which `verbose` changes, and the last lines of the log. `None`: neither.
    pub verbosity: Option<Verbosity>,
    /// Executable that supervises each command (`adit supervise`), normally adit itself. `None`: commands are direct children.
    pub supervisor: Option<PathBuf>,
    /// Whether to bind the admin socket, which `adit status` and `adit stop` use.
    pub admin: bool,
    /// Folder of the dashboard's files. `None`: those in the binary.
    pub ui_dir: Option<PathBuf>,
    /// Sockets bound by a service manager.
    pub inherited: Arc<Inherited>,
}

/// The program with every socket bound. It does not serve yet.
pub struct Bound {
    app: App,
    config: Config,
    /// The same for all: a kubeconfig that is a pipe is read once.
    clusters: Arc<Clusters>,
    journal: Arc<Journal>,
    sockets: Sockets,
    admin: Option<AdminSocket>,
    /// Port that names the admin socket. `None`: there will be no admin socket.
    admin_port: Option<u16>,
}

impl App {
    /// Binds every listener of `config`, or none.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn bind(self, mut config: Config) -> Result<Bound, BindError> {
        self.overrides.apply(&mut config);
        let sockets = Sockets::bind(&bind::wanted(&config), &self.inherited, |_| None)
            .map_err(|error| self.overrides.explain(error))?;
        let port = sockets.addresses(Kind::Http).first().map(SocketAddr::port).filter(|_| self.admin);
        let admin = port.and_then(|port| {
            AdminSocket::bind(port)
                .inspect_err(|error| warn!(%error, "no admin socket: 'adit status' does not find this adit until there is one; trying again"))
                .ok()
        });
        let clusters = Clusters::new(&config.exec_path);
        Ok(Bound { app: self, config, clusters, journal: Arc::default(), sockets, admin, admin_port: port })
    }
}

impl Bound {
    /// Returns the addresses of the HTTP and TLS listener.
    pub fn http_addresses(&self) -> Vec<SocketAddr> {
        self.sockets.addresses(Kind::Http)
    }

    /// Returns the addresses of the TCP routes.
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        self.sockets.addresses(Kind::Tcp)
    }

    /// Returns the addresses of the SNI listener.
    pub fn sni_addresses(&self) -> Vec<SocketAddr> {
        self.sockets.addresses(Kind::Sni)
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the journal, whose audit log has to be finished after the drain.
    pub fn journal(&self) -> Arc<Journal> {
        self.journal.clone()
    }

    /// Reads the kubeconfig, and returns what each name means.
    pub fn router(&self) -> Router {
        route(&self.clusters, Arc::new(self.config.clone()))
    }

    /// Serves until `drain` starts; the caller then waits for the connections that `drain` tracks.
    ///
    /// # Errors
    /// The audit log cannot be opened, or the system has no random numbers for keys.
    pub async fn run(self, drain: Drain) -> io::Result<()> {
        let Self { app, config, clusters, journal, sockets, admin, admin_port } = self;
        let backend: Arc<dyn Backend> =
            Arc::new(Backends::new(clusters.clone(), app.supervisor.clone(), drain.clone()));
        let tunnels = Manager::with_journal(backend, drain.clone(), journal);
        let config = Arc::new(config);
        let router: SharedRouter = Arc::new(ArcSwap::from_pointee(route(&clusters, config.clone())));
        let metrics = Arc::new(Metrics::default());
        let (mux, http, postgres) = mux(&router, &tunnels, &metrics, &drain)?;
        let tcp = TcpFrontend::new(router.clone(), tunnels.clone(), postgres.clone(), metrics.clone());
        let sni = SniFrontend::new(router.clone(), tunnels.clone(), postgres, metrics.clone());
        config.notes.iter().for_each(|note| warn!("{note}"));
        let namespace = app.overrides.namespace.as_ref().map(ToString::to_string);
        let facts = Facts { loaded_at: now(), namespace, ..Facts::default() };
        if let Some(file) = &config.audit {
            tunnels.journal().set_audit(Some(audit(file).await?));
        }
        let keys = Arc::new(Keys::new()?);
        let of_socket = keys.clone();
        let write_token = move |socket: &AdminSocket| {
            socket.write_token(of_socket.token()).unwrap_or_else(|error| debug!(%error, "no token file"));
        };
        // Write the token first: clients may need it as soon as adit serves.
        admin.iter().for_each(&write_token);
        let source = Source::new(Parts {
            tunnels: tunnels.clone(),
            metrics,
            drain: drain.clone(),
            router: router.clone(),
            clusters: clusters.clone(),
            lines: app.verbosity.as_ref().map(|verbosity| verbosity.lines().clone()).unwrap_or_default(),
            facts,
            opener: Some(Arc::new(Opening {
                reach: reach::Reach {
                    clusters: clusters.clone(),
                    forwards: Forwards::over(tunnels.clone(), drain.clone()),
                },
                router: router.clone(),
                served: Default::default(),
                turns: Default::default(),
            })),
            keys: Some(keys),
            locks: http.locks(),
            replayer: Some(Arc::new(Replaying {
                front: Arc::downgrade(&http),
                router: router.clone(),
                drain: drain.clone(),
            })),
        });
        http.set_own_site(Arc::new(Dashboard::new(source.clone(), Assets { folder: app.ui_dir.clone() })));
        let told = source.clone();
        let admin_listener = move |stream, _| -> BoxFuture<'static, ()> {
            Box::pin(endpoints::serve(stream, told.clone(), Reach::Machine))
        };
        let frontends = Frontends { mux, tcp, sni, admin: Box::new(admin_listener) };
        let mut ports = Ports::new(frontends, app.inherited.clone(), drain.clone());
        ports.serve(sockets);
        ports.refuse_unused();

        // A drain must not wait for a sign-in, which may need a person at a browser.
        let (ended, of_clusters) = (drain.clone(), clusters.clone());
        drain.spawn(async move {
            ended.started().await;
            of_clusters.sign_ins().stop();
        });
        let (first, refused, local, late) = (config, None, BTreeMap::new(), Vec::new());
        let mut running = Running { app, clusters, tunnels, router, ports, source, first, refused, local, late };
        running.tell_facts();
        running.serve_local(&drain);
        if let Some(port) = admin_port {
            let (source, tasks, ended) = (running.source.clone(), drain.clone(), drain.clone());
            drain.spawn(async move {
                let serving = async {
                    let socket = match admin {
                        Some(socket) => socket,
                        None => {
                            let socket = AdminSocket::bind_when_free(port).await;
                            write_token(&socket);
                            socket
                        }
                    };
                    socket.serve(source, tasks).await;
                };
                tokio::select! {
                    () = serving => {}
                    () = ended.started() => {}
                }
            });
        }
        running.follow(&drain).await;
        Ok(())
    }
}

/// Returns the frontend of a listener that detects the protocol, and its HTTP and PostgreSQL frontends.
fn mux(
    router: &SharedRouter,
    tunnels: &Manager,
    metrics: &Arc<Metrics>,
    drain: &Drain,
) -> io::Result<(Mux, Arc<HttpFrontend>, Arc<PostgresFrontend>)> {
    let http = HttpFrontend::new(router.clone(), tunnels.clone(), metrics.clone(), drain.clone());
    let tls = TlsFrontend::new(router.clone(), tunnels.clone(), http.clone(), metrics.clone())?;
    let postgres = tls.postgres();
    let forward = Forward::new(router.clone(), tunnels.clone(), http.locks());
    let forward = ForwardFrontends {
        socks: SocksFrontend::new(forward.clone(), metrics.clone()),
        connect: ConnectFrontend::new(forward, router.clone(), metrics.clone()),
    };
    Ok((Mux::new(http.clone(), tls, forward, router.clone(), metrics.clone()), http, postgres))
}

/// Returns the router for a configuration and the kubeconfigs' current contexts.
pub fn route(clusters: &Clusters, config: Arc<Config>) -> Router {
    let http_contexts = Arc::new(clusters.contexts(&Arc::new(config.http.kubeconfig.clone())));
    let tcp_contexts = if config.tcp.kubeconfig == config.http.kubeconfig {
        http_contexts.clone()
    } else {
        Arc::new(clusters.contexts(&Arc::new(config.tcp.kubeconfig.clone())))
    };
    Router { config, http_contexts, tcp_contexts }
}

/// Opens the audit log. A pipe that nobody reads cannot be opened, and a file system may hang.
async fn audit(file: &Path) -> io::Result<Audit> {
    let path = file.to_owned();
    let opened = timeout(AUDIT_WITHIN, spawn_blocking(move || Audit::open(&path))).await;
    let late = || io::Error::other("nobody reads the pipe, or its file system does not answer");
    let wrong = |error: io::Error| {
        io::Error::new(error.kind(), format!("the audit log {} cannot be written: {error}", file.display()))
    };
    opened
        .map_err(|_| late())
        .and_then(|opened| opened.unwrap_or_else(|error| Err(io::Error::other(error))))
        .map_err(wrong)
}

fn now() -> String {
    jiff::Zoned::now().strftime("%H:%M:%S").to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::validate;

    #[test]
    fn a_namespace_and_a_kubeconfig_of_the_command_line_are_for_every_kind_of_route() {
        let text = "http: {k8s: {routes: {a: {service: x}, b: {service: x, namespace: own}}}}\n\
                    tcp: {k8s: {routes: {10: {service: x}}, kubeconfig: /c}}\n\
                    sni: {listen: \"127.0.0.1:0\", routes: {a.test: {k8s: {service: x}}}}\n";
        let mut config = validate::parse(Path::new("c"), text.as_bytes()).unwrap();
        let paths = KubeconfigPaths(vec!["/k".into()]);
        let namespace = Some("dev".parse().unwrap());
        Overrides { namespace, kubeconfig: Some(paths.clone()), ..Overrides::default() }.apply(&mut config);
        let mut destinations: Vec<_> = config.http.routes.values().map(|route| &route.destination).collect();
        destinations.extend(config.tcp.routes.values().map(|route| &route.destination));
        destinations.extend(config.sni.iter().flat_map(|sni| sni.routes.values()).filter_map(|route| {
            match &route.backend {
                SniBackend::Kubernetes(destination) => Some(&**destination),
                SniBackend::Command(_) => None,
            }
        }));
        let namespaces: Vec<_> = destinations.iter().map(|to| to.namespace.as_ref().map(ToString::to_string)).collect();
        assert_eq!(namespaces, ["dev", "own", "dev", "dev"].map(|name| Some(name.to_owned())));
        assert_eq!((config.http.kubeconfig, config.tcp.kubeconfig), (paths.clone(), paths));
    }
}
