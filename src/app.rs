//! Puts the pieces together.

use std::{collections::BTreeMap, io, net::SocketAddr, path::PathBuf, sync::Arc};

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use crate::{
    admin::{
        endpoints::{self, Reach},
        socket::AdminSocket,
        status::{Facts, Source},
    },
    backend::{Backend, Backends},
    config::{
        Config, ContextName, Expose, KubeconfigPaths, Namespace, SniBackend,
        diff::Diff,
        watch::{self as files, Reload},
    },
    drain::Drain,
    frontend::{http::HttpFrontend, sni::SniFrontend, tcp::TcpFrontend, tls::TlsFrontend},
    k8s::client::Clusters,
    listener::{
        mux::Mux,
        ports::{Frontends, Kind, Ports, Sockets},
    },
    metrics::Metrics,
    relay::{
        self,
        client::{Direct, Open, Wanted},
        tls::Trust,
    },
    routing::{Router, SharedRouter, Target},
    telemetry::Verbosity,
    tunnel::Manager,
};

pub use crate::listener::ports::BindError;

/// What the command line says beside the file; it holds across reloads.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub context: Option<ContextName>,
    /// The namespace of routes that give none.
    pub namespace: Option<Namespace>,
    pub kubeconfig: Option<KubeconfigPaths>,
    pub listen: Option<Vec<SocketAddr>>,
    pub verbose: bool,
}

impl Overrides {
    /// Puts what the command line says over what the file says.
    pub fn apply(&self, config: &mut Config) {
        config.verbose |= self.verbose;
        if let Some(context) = &self.context {
            let alias = config.contexts.get(&context.0).map(|alias| alias.name.clone());
            config.default_context = Some(alias.unwrap_or_else(|| context.clone()));
        }
        if let Some(namespace) = &self.namespace {
            let http = config.http.routes.values_mut().map(|route| &mut route.destination);
            let tcp = config.tcp.routes.values_mut().map(|route| &mut route.destination);
            for destination in http.chain(tcp) {
                destination.namespace.get_or_insert_with(|| namespace.clone());
            }
        }
        if let Some(paths) = &self.kubeconfig {
            config.http.kubeconfig = paths.clone();
            config.tcp.kubeconfig = paths.clone();
        }
        if let Some(listen) = &self.listen {
            config.http.listen = listen.clone();
        }
    }
}

/// The whole program, before it listens.
#[derive(Default)]
pub struct App {
    pub overrides: Overrides,
    /// The file to follow. None: the configuration never changes.
    pub file: Option<PathBuf>,
    /// What is changed with `verbose`.
    pub verbosity: Option<Verbosity>,
    /// What stands between adit and a command: a program that knows `supervise`, as adit itself does. None: nothing does.
    pub supervisor: Option<PathBuf>,
    /// Whether `adit status` and `adit stop` find it.
    pub admin: bool,
}

/// Every socket is bound; nothing is served yet.
pub struct Bound {
    app: App,
    config: Config,
    sockets: Sockets,
    admin: Option<AdminSocket>,
}

impl App {
    /// Binds every listener of `config`. All or nothing.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub fn bind(self, mut config: Config) -> Result<Bound, BindError> {
        self.overrides.apply(&mut config);
        let sockets = Sockets::bind(&config, |_, _| false)?;
        let port = sockets.addresses(Kind::Http).first().map(SocketAddr::port).filter(|_| self.admin);
        let admin = port.and_then(|port| {
            AdminSocket::bind(port)
                .inspect_err(|error| warn!(%error, "no admin socket: 'adit status' will not find this adit"))
                .ok()
        });
        Ok(Bound { app: self, config, sockets, admin })
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

    /// Serves until `drain` starts. What is in progress then is tracked by `drain`.
    ///
    /// # Errors
    /// The system gives no random numbers for the keys of error pages.
    pub async fn run(self, drain: Drain) -> io::Result<()> {
        let Self { app, config, sockets, admin } = self;
        let clusters = Clusters::new(&config.exec_path);
        let backend: Arc<dyn Backend> = Arc::new(Backends::new(clusters.clone(), app.supervisor.clone()));
        let tunnels = Manager::new(backend, drain.clone());
        let allow_commands = config.sni.as_ref().is_some_and(|sni| sni.allow_commands);
        let config = Arc::new(config);
        let router: SharedRouter = Arc::new(ArcSwap::from_pointee(route(&clusters, config.clone())));
        let metrics = Arc::new(Metrics::default());
        let http = HttpFrontend::new(router.clone(), tunnels.clone(), metrics.clone(), drain.clone());
        let tls = TlsFrontend::new(router.clone(), tunnels.clone(), http.clone(), metrics.clone())?;
        let tcp = TcpFrontend::new(router.clone(), tunnels.clone(), metrics.clone());
        let mux = Mux::new(http, tls, router.clone(), metrics.clone());
        let sni = SniFrontend::new(router.clone(), tunnels.clone(), metrics.clone());
        let facts = Facts { loaded_at: now(), ..Facts::default() };
        let source = Source::new(tunnels.clone(), metrics, drain.clone(), facts);
        let told = source.clone();
        let admin_listener = move |stream, _| -> BoxFuture<'static, ()> {
            Box::pin(endpoints::serve(stream, told.clone(), Reach::Machine))
        };
        let frontends = Frontends { mux, tcp, sni, admin: Box::new(admin_listener) };
        let mut ports = Ports::new(frontends, drain.clone());
        ports.serve(sockets);

        let mut running =
            Running { app, clusters, tunnels, router, ports, source, allow_commands, exposed: BTreeMap::new() };
        running.tell_facts();
        running.expose(&drain);
        if let Some(socket) = admin {
            let (source, tasks, ended) = (running.source.clone(), drain.clone(), drain.clone());
            drain.spawn(async move {
                tokio::select! {
                    () = socket.serve(source, tasks) => {}
                    () = ended.started() => {}
                }
            });
        }
        running.follow(&drain).await;
        Ok(())
    }
}

/// The program in service.
struct Running {
    app: App,
    clusters: Arc<Clusters>,
    tunnels: Manager,
    router: SharedRouter,
    ports: Ports,
    source: Source,
    /// What the file said as first started.
    allow_commands: bool,
    /// The clients of relays that run, with what ends each.
    exposed: BTreeMap<Expose, Drain>,
}

impl Running {
    /// Starts and ends the clients of relays, so that they are those of the configuration.
    fn expose(&mut self, drain: &Drain) {
        let wanted = self.router.load().config.expose.clone();
        self.exposed.retain(|expose, client| {
            let is_wanted = wanted.contains(expose);
            if !is_wanted {
                client.start();
            }
            is_wanted
        });
        for expose in wanted {
            if self.exposed.contains_key(&expose) {
                continue;
            }
            let client = drain.child();
            let (of_client, to) = (client.clone(), format!("{}:{}", expose.to.0, expose.to.1));
            let options = relay_client(&expose);
            drain.spawn(async move {
                let opened = |open: &[Open]| {
                    open.iter().for_each(|open| info!(public = open.public, local = open.local_port, "exposed"))
                };
                let ended = match options {
                    Ok(options) => {
                        relay::client::run(options, of_client, opened).await.map_err(|error| error.to_string())
                    }
                    Err(error) => Err(error.to_string()),
                };
                if let Err(error) = ended {
                    warn!(relay = to, error, "not exposed");
                }
            });
            self.exposed.insert(expose, client);
        }
    }

    /// Applies changes of the configuration and of the kubeconfig until the drain starts.
    async fn follow(&mut self, drain: &Drain) {
        let (changes_tx, mut changes) = watch::channel::<Option<Reload>>(None);
        let (look_again_tx, look_again) = mpsc::channel(1);
        if let Some(file) = self.app.file.clone() {
            drain.spawn(files::run(file, changes_tx, look_again));
            hang_up(look_again_tx, drain);
        }
        let (touched_tx, mut touched) = mpsc::channel(1);
        let mut watched = self.kubeconfigs();
        drain.spawn(files::touched(watched.clone(), touched_tx));
        let mut is_followed = self.app.file.is_some();
        loop {
            tokio::select! {
                changed = changes.changed(), if is_followed => match changed {
                    Ok(()) => {
                        let reload = changes.borrow_and_update().clone();
                        match reload {
                            Some(Reload { config: Ok(config), asked_for }) => {
                                self.reload((*config).clone(), asked_for).await;
                                self.expose(drain);
                            }
                            Some(Reload { config: Err(reason), .. }) => self.reject(&reason),
                            None => {}
                        }
                    }
                    Err(_) => is_followed = false,
                },
                Some(()) = touched.recv() => {
                    info!("kubeconfig changed");
                    self.reroute(self.router.load().config.clone());
                }
                () = drain.started() => return,
            }
            if self.kubeconfigs() != watched {
                watched = self.kubeconfigs();
                let (touched_tx, next) = mpsc::channel(1);
                // The watcher of the old files ends with its receiver.
                touched = next;
                drain.spawn(files::touched(watched.clone(), touched_tx));
            }
        }
    }

    fn kubeconfigs(&self) -> Vec<PathBuf> {
        let config = &self.router.load().config;
        let mut paths = config.http.kubeconfig.0.clone();
        paths.extend(config.tcp.kubeconfig.0.iter().filter(|path| !config.http.kubeconfig.0.contains(path)).cloned());
        paths
    }

    async fn reload(&mut self, mut config: Config, asked_for: bool) {
        self.app.overrides.apply(&mut config);
        let old = self.router.load().config.clone();
        if config == *old {
            return self.source.update(|facts| facts.rejected = None);
        }
        if !old.auto_reload && !asked_for {
            info!("the configuration file changed, and auto_reload_config is false: SIGHUP or a restart applies it");
            return;
        }
        let news = new_commands(&old, &config);
        if !news.is_empty() && !self.allow_commands {
            let reason = format!(
                "it brings commands to run ({}), and sni.allow_commands was not set when adit started: restart adit to run them",
                news.join("; ")
            );
            return self.reject(&reason);
        }
        if let Err(error) = self.ports.change(&config).await {
            return self.reject(&error.to_string());
        }
        let diff = Diff::between(&old, &config);
        if let Some(verbosity) = &self.app.verbosity {
            verbosity.set(config.verbose);
        }
        self.clusters.set_exec_path(&config.exec_path);
        self.reroute(Arc::new(config));
        self.source.update(|facts| (facts.loaded_at, facts.rejected) = (now(), None));
        self.tell_facts();
        info!(changed = ?diff.routes, "config reloaded");
    }

    /// Gives names their new meaning, and lets tunnels that none leads to any more finish.
    fn reroute(&self, config: Arc<Config>) {
        self.router.store(Arc::new(route(&self.clusters, config)));
        let router = self.router.load();
        self.tunnels.retain(|target| router.leads_to(target));
        self.tell_facts();
    }

    fn reject(&self, reason: &str) {
        let loaded_at = self.source.status().facts.loaded_at;
        warn!("config not reloaded: {reason}; still using the config from {loaded_at}");
        self.source.update(|facts| facts.rejected = Some(reason.to_owned()));
    }

    fn tell_facts(&self) {
        let router = self.router.load();
        let context = router.config.default_context.as_ref().or(router.http_contexts.current.as_ref());
        self.source.update(|facts| {
            facts.config.clone_from(&router.config.source);
            facts.http = self.ports.addresses(Kind::Http);
            facts.tcp = self.ports.addresses(Kind::Tcp);
            facts.context = context.map(ToString::to_string);
        });
    }
}

/// Returns the meaning of every name as things stand.
pub fn route(clusters: &Clusters, config: Arc<Config>) -> Router {
    let http_contexts = Arc::new(clusters.contexts(&Arc::new(config.http.kubeconfig.clone())));
    let tcp_contexts = if config.tcp.kubeconfig == config.http.kubeconfig {
        http_contexts.clone()
    } else {
        Arc::new(clusters.contexts(&Arc::new(config.tcp.kubeconfig.clone())))
    };
    Router { config, http_contexts, tcp_contexts, relayed: None }
}

/// Returns what the client of a relay is told.
fn relay_client(expose: &Expose) -> io::Result<relay::client::Options> {
    let keys = relay::auth::load(expose.secret_file.as_deref())?;
    let key = keys.into_iter().next().ok_or_else(|| io::Error::other("there is no secret"))?;
    let trust = Trust::of(expose.fingerprint.as_ref(), expose.ca.as_ref());
    let kind = if expose.name.is_some() { relay::Kind::Http } else { relay::Kind::Tcp };
    let name = expose.name.clone().unwrap_or_default();
    let tunnels = vec![Wanted { local_port: expose.local_port, kind, port: expose.public_port, name }];
    let dial = Arc::new(Direct { host: expose.to.0.clone(), port: expose.to.1 });
    let local_host = expose.local_host.clone();
    Ok(relay::client::Options { dial, key: key.name, secret: key.secret, trust, local_host, tunnels })
}

/// Returns the commands of `new` that `old` would not run, as they may be shown.
fn new_commands(old: &Config, new: &Config) -> Vec<String> {
    let commands = |config: &Config| -> Vec<Target> {
        let routes = config.sni.iter().flat_map(|sni| sni.routes.values());
        let commands = routes.filter_map(|route| match &route.backend {
            SniBackend::Command(command) => Some(Target::Command(command.clone())),
            SniBackend::Kubernetes(_) => None,
        });
        commands.collect()
    };
    let known = commands(old);
    commands(new).iter().filter(|command| !known.contains(command)).map(ToString::to_string).collect()
}

/// SIGHUP asks for a look at the configuration file, whatever `auto_reload_config` says.
fn hang_up(look_again: mpsc::Sender<()>, drain: &Drain) {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::hangup()) {
        Ok(mut hang_ups) => {
            let ended = drain.clone();
            drain.spawn(async move {
                loop {
                    tokio::select! {
                        Some(()) = hang_ups.recv() => {
                            // One that waits already will do.
                            let _ = look_again.try_send(());
                        }
                        () = ended.started() => return,
                    }
                }
            });
        }
        Err(error) => debug!(%error, "SIGHUP is not taken"),
    }
}

fn now() -> String {
    jiff::Zoned::now().strftime("%H:%M:%S").to_string()
}
