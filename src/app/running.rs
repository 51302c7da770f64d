//! The running program: follows its files, and applies changes.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc, time::Duration};

use futures::future::select_all;
use tokio::{
    sync::{mpsc, watch},
    task::{JoinHandle, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::{App, audit, now, route};
use crate::{
    admin::api::source::{LocalStatus, Source},
    config::{
        Command, Config, LocalPort, SniBackend, diff,
        names::host_header,
        watch::{self as files, Reload},
    },
    drain::Drain,
    k8s::client::Clusters,
    listener::{
        bind::Kind,
        ports::{self, Ports},
    },
    relay::{
        self,
        client::{ClientState, Direct, Fatal, Refusals, Wanted},
        tls::Trust,
    },
    routing::{Router, SharedRouter, Target},
    tunnel::Manager,
};

/// Interval between two attempts to bind a port that another program uses.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Interval between looks at the certificates and keys that the kubeconfigs in use name. Other programs renew them in
/// place, and kubectl reads them at each start.
const LOOK_AT_FILES: Duration = Duration::from_secs(60);

/// Interval between two attempts to apply a configuration whose addresses are not free. It doubles up to the longest one while
/// each attempt has to close a listener that works.
const APPLY_AGAIN: Duration = Duration::from_secs(5);
const LONGEST_APPLY_AGAIN: Duration = Duration::from_secs(5 * 60);

/// Time limit of a read of the kubeconfigs. After it, their file system counts as hanging.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// Maximum number of late reads. Each holds a thread, and one of a pipe that was deleted never ends.
const MOST_LATE: usize = 8;

/// A configuration whose addresses were not free. It is tried again.
pub struct Refused {
    config: Config,
    /// Whether a person requested it.
    asked_for: bool,
    pause: Duration,
    again_at: Instant,
}

/// The running program.
pub struct Running {
    pub app: App,
    pub clusters: Arc<Clusters>,
    pub tunnels: Manager,
    pub router: SharedRouter,
    pub ports: Ports,
    pub source: Source,
    /// The configuration at the start of the process.
    pub first: Arc<Config>,
    pub refused: Option<Refused>,
    /// Running clients of relays; each drain ends its client.
    pub local: BTreeMap<LocalPort, Drain>,
    /// Reads of the kubeconfigs that are past their time limit.
    pub late: Vec<JoinHandle<Router>>,
}

impl Running {
    /// Starts and ends clients of relays, so that they match the configuration.
    pub fn serve_local(&mut self, drain: &Drain) {
        let wanted = self.router.load().config.local.clone();
        self.local.retain(|local, client| {
            let is_wanted = wanted.contains(local);
            if !is_wanted {
                client.start();
            }
            is_wanted
        });
        self.source.update(|facts| facts.local.retain(|(local, _)| wanted.contains(local)));
        for local in wanted {
            if self.local.contains_key(&local) {
                continue;
            }
            let client = drain.child();
            let (of_client, of_entry, source) = (client.clone(), local.clone(), self.source.clone());
            set_status(&source, &local, "connecting", None, None);
            drain.spawn(async move {
                let tell = |state: &ClientState| match state {
                    ClientState::Open(open) => {
                        for open in open {
                            info!(public = open.public, local = open.local_port, "a local port is reachable");
                            set_status(&source, &of_entry, "open", Some(open.public.clone()), None);
                        }
                    }
                    ClientState::HostRefused { local_port } => {
                        let hint = host_hint(&of_entry);
                        warn!(local_port, hint, "the local service refuses the Host header of its visitors");
                        source.update(|facts| {
                            let status = facts.local.iter_mut().find(|(local, _)| *local == of_entry);
                            status.into_iter().for_each(|(_, status)| status.hint = Some(hint.clone()));
                        });
                    }
                    ClientState::Waiting { reason, .. } => {
                        set_status(&source, &of_entry, "waiting", None, Some(reason.clone()));
                    }
                };
                // Retry every error: the secret file may appear later, and the public port may become free.
                let options = || relay_client(&of_entry).map_err(|error| Fatal::Setup(error.to_string()));
                if let Err(error) = relay::client::run(options, Refusals::Retry, of_client, tell).await {
                    warn!(relay = relay_of(&of_entry), %error, "a local port is not reachable any more");
                    set_status(&source, &of_entry, "ended", None, Some(error.to_string()));
                }
            });
            self.local.insert(local, client);
        }
    }

    /// Applies changes of the configuration and of the kubeconfigs until the drain starts.
    pub async fn follow(&mut self, drain: &Drain) {
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
        let mut look_at_files = interval(LOOK_AT_FILES);
        look_at_files.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let apply_at = self.refused.as_ref().map(|refused| refused.again_at);
            tokio::select! {
                changed = changes.changed(), if is_followed => match changed {
                    Ok(()) => {
                        let reload = changes.borrow_and_update().clone();
                        self.refused = None;
                        match reload {
                            Some(Reload { config: Ok(config), asked_for }) => {
                                self.reload((*config).clone(), asked_for, None).await;
                                self.serve_local(drain);
                            }
                            Some(Reload { config: Err(reason), .. }) => self.reject(&reason),
                            None => {}
                        }
                    }
                    Err(_) => is_followed = false,
                },
                Some(()) = touched.recv() => {
                    info!("kubeconfig changed");
                    self.reroute(self.router.load().config.clone()).await;
                    self.refresh(drain);
                }
                () = finished(&mut self.late), if !self.late.is_empty() => {
                    self.reroute(self.router.load().config.clone()).await;
                }
                _ = look_at_files.tick() => self.refresh(drain),
                () = sleep_until(apply_at.unwrap_or_else(Instant::now)), if apply_at.is_some() => {
                    if let Some(refused) = self.refused.take() {
                        self.reload(refused.config, refused.asked_for, Some(refused.pause)).await;
                        self.serve_local(drain);
                    }
                }
                () = sleep(LISTEN_AGAIN), if self.ports.has_lost() => {
                    if self.ports.recover() {
                        self.tell_facts();
                    }
                }
                () = drain.started() => return,
            }
            if self.kubeconfigs() != watched {
                watched = self.kubeconfigs();
                let (touched_tx, next) = mpsc::channel(1);
                // Dropping the receiver ends the watcher of the old files.
                touched = next;
                drain.spawn(files::touched(watched.clone(), touched_tx));
            }
        }
    }

    /// Retires the sessions to clusters that their contexts do not lead to any more. In a task of its own, because a file
    /// system may hang.
    fn refresh(&self, drain: &Drain) {
        let clusters = self.clusters.clone();
        drain.spawn(async move { clusters.refresh().await });
    }

    fn kubeconfigs(&self) -> Vec<PathBuf> {
        let config = &self.router.load().config;
        let mut paths = config.http.kubeconfig.0.clone();
        paths.extend(config.tcp.kubeconfig.0.iter().filter(|path| !config.http.kubeconfig.0.contains(path)).cloned());
        paths
    }

    /// Applies a configuration. `again`: the pause since the last attempt, which failed, and whose reason is in the log.
    async fn reload(&mut self, mut config: Config, asked_for: bool, again: Option<Duration>) {
        self.app.overrides.apply(&mut config);
        let old = self.router.load().config.clone();
        if config == *old {
            return self.source.update(|facts| facts.rejected = None);
        }
        if !old.auto_reload && !asked_for {
            info!("the configuration file changed, and auto_reload_config is false: SIGHUP or a restart applies it");
            return;
        }
        let news = new_commands(&self.first, &config);
        if !news.is_empty() && !self.first.sni.as_ref().is_some_and(|sni| sni.allow_commands) {
            let reason = format!(
                "it brings commands to run ({}), and sni.allow_commands was not set when adit started: restart adit to run them",
                news.join("; ")
            );
            return self.reject(&reason);
        }
        // Open the log before any listener changes. After this, only a listener can still reject the configuration.
        let new_audit = match config.audit.as_deref().filter(|_| config.audit != old.audit) {
            Some(file) => match audit(file).await {
                Ok(opened) => Some(opened),
                Err(error) => return self.reject(&error.to_string()),
            },
            None => None,
        };
        let change = match self.ports.prepare(&config, again.is_some()).await {
            Ok(change) => change,
            Err(ports::Refused { error, has_closed }) => {
                let error = self.app.overrides.explain(error);
                let hint = error.hint().map_or_else(String::new, |hint| format!("; {hint}"));
                self.tell_facts();
                let reason = format!("{error}{hint}");
                if again.is_none() || self.source.facts().rejected.as_ref() != Some(&reason) {
                    self.reject(&reason);
                }
                let pause = match again {
                    Some(pause) if has_closed => (2 * pause).min(LONGEST_APPLY_AGAIN),
                    _ => APPLY_AGAIN,
                };
                self.refused = Some(Refused { config, asked_for, pause, again_at: Instant::now() + pause });
                return;
            }
        };
        if config.audit != old.audit {
            self.tunnels.journal().set_audit(new_audit);
        }
        if config.notes != old.notes {
            config.notes.iter().for_each(|note| warn!("{note}"));
        }
        let changed: Vec<String> = diff::between(&old, &config).iter().map(ToString::to_string).collect();
        if let Some(verbosity) = &self.app.verbosity {
            verbosity.set(config.verbose);
        }
        self.clusters.set_exec_path(&config.exec_path);
        self.reroute(Arc::new(config)).await;
        // Complete the listeners after the routes, so that the first connection of a new listener finds its route.
        self.ports.complete(change).await;
        info!(changed = changed.join(", "), "config reloaded");
        self.source.update(|facts| (facts.loaded_at, facts.rejected, facts.changed) = (now(), None, changed));
        self.tell_facts();
    }

    /// Replaces the router, and lets tunnels without a route or name finish. If the kubeconfigs are on a file system that hangs,
    /// their old contexts stay in force.
    async fn reroute(&mut self, config: Arc<Config>) {
        let old = self.router.load_full();
        let mut read = None;
        if self.late.len() < MOST_LATE {
            let (clusters, config) = (self.clusters.clone(), config.clone());
            let mut reading = spawn_blocking(move || route(&clusters, config));
            match timeout(READ_WITHIN, &mut reading).await {
                Ok(done) => read = done.ok(),
                Err(_) => self.late.push(reading),
            }
        }
        let router = read.unwrap_or_else(|| {
            let (http, tcp) = (&config.http.kubeconfig, &config.tcp.kubeconfig);
            let files = if http == tcp { http.to_string() } else { format!("{http}, {tcp}") };
            warn!(files, "a kubeconfig cannot be read: its file system does not answer, or it is a pipe that nobody writes; still using its contexts");
            Router { config, http_contexts: old.http_contexts.clone(), tcp_contexts: old.tcp_contexts.clone() }
        });
        self.router.store(Arc::new(router));
        let router = self.router.load();
        // Longer timeouts of callers with other names stay, if no route has changed.
        let new_timeout = |target: &Target| {
            let new = router.idle_timeout(target)?;
            (old.idle_timeout(target) != Some(new)).then_some(new)
        };
        self.tunnels.retain(|target| router.leads_to(target), new_timeout);
        self.tell_facts();
    }

    fn reject(&self, reason: &str) {
        let loaded_at = self.source.facts().loaded_at;
        warn!("config not reloaded: {reason}; still using the config from {loaded_at}");
        self.source.update(|facts| facts.rejected = Some(reason.to_owned()));
    }

    pub fn tell_facts(&self) {
        let router = self.router.load();
        let context = router.default_context();
        self.source.update(|facts| {
            facts.config.clone_from(&router.config.source);
            facts.http = self.ports.addresses(Kind::Http);
            facts.tcp = self.ports.addresses(Kind::Tcp);
            facts.context = context.map(ToString::to_string);
        });
    }
}

/// Waits for the end of a late read, and removes it. `late` must not be empty.
async fn finished(late: &mut Vec<JoinHandle<Router>>) {
    let (_, at, _) = select_all(late.iter_mut()).await;
    late.remove(at);
}

fn relay_of(local: &LocalPort) -> String {
    local.to.to_string()
}

fn set_status(source: &Source, local: &LocalPort, state: &str, public: Option<String>, reason: Option<String>) {
    let status = LocalStatus {
        port: local.local_port,
        relay: relay_of(local),
        name: local.name.as_deref().map(str::to_owned),
        public_port: Some(local.public_port).filter(|port| *port > 0),
        state: state.to_owned(),
        public,
        reason,
        hint: None,
    };
    source.update(|facts| match facts.local.iter_mut().find(|(known, _)| known == local) {
        Some((_, known)) => *known = status,
        None => facts.local.push((local.clone(), status)),
    });
}

/// Returns what to write if the local service refuses the Host header of its visitors.
fn host_hint(local: &LocalPort) -> String {
    match (&local.name, &local.host) {
        (None, _) => "give the tunnel a name: 'name: NAME' and 'host: rewrite' in its entry under 'local'".to_owned(),
        (Some(_), None) => {
            "write 'host: rewrite' in its entry under 'local': the service then gets localhost".to_owned()
        }
        (Some(_), Some(host)) => {
            let allow = format!("allow {host} in the service's own configuration");
            let rewritten = host_header("rewrite", local.local_host.as_deref(), local.local_port);
            match rewritten.as_ref() == Some(host) {
                true => allow,
                false => format!("{allow}, or write 'host: rewrite' in its entry under 'local'"),
            }
        }
    }
}

/// Returns the options of a relay's client.
fn relay_client(local: &LocalPort) -> io::Result<relay::client::Options> {
    let keys = relay::auth::load(local.secret_file.as_deref())?;
    let key = keys.into_iter().next().ok_or_else(|| io::Error::other("there is no secret"))?;
    let trust = Trust::of(local.fingerprint, local.ca.as_ref());
    let kind = if local.name.is_some() { relay::Kind::Http } else { relay::Kind::Tcp };
    let name = local.name.as_deref().unwrap_or_default();
    let name = local.host.as_ref().map_or_else(|| name.to_owned(), |host| format!("{name}={host}"));
    let tunnels = vec![Wanted { local_port: local.local_port, kind, port: local.public_port, name }];
    let dial = Arc::new(Direct { host: local.to.host().to_owned(), port: local.to.port() });
    let local_host = local.local_host.clone();
    Ok(relay::client::Options { dial, key: key.name, secret: key.secret, trust, local_host, tunnels })
}

/// Returns the commands of `new` that `first` does not have, for display.
fn new_commands(first: &Config, new: &Config) -> Vec<String> {
    fn commands(config: &Config) -> impl Iterator<Item = &Arc<Command>> {
        config.sni.iter().flat_map(|sni| sni.routes.values()).filter_map(|route| match &route.backend {
            SniBackend::Command(command) => Some(command),
            SniBackend::Kubernetes(_) => None,
        })
    }
    let is_known = |command: &&Arc<Command>| commands(first).any(|known| known.runs_the_same(command));
    let news = commands(new).filter(|command| !is_known(command));
    news.map(|command| Target::Command(command.clone()).to_string()).collect()
}

/// On SIGHUP, makes the watcher read the configuration again, even if `auto_reload_config` is false.
fn hang_up(look_again: mpsc::Sender<()>, drain: &Drain) {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::hangup()) {
        Ok(mut hang_ups) => {
            let ended = drain.clone();
            drain.spawn(async move {
                loop {
                    tokio::select! {
                        Some(()) = hang_ups.recv() => {
                            // If the channel is full, a request is already waiting.
                            let _ = look_again.try_send(());
                        }
                        () = ended.started() => return,
                    }
                }
            });
        }
        Err(error) => debug!(%error, "cannot install the SIGHUP handler"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::validate;

    #[test]
    fn the_hint_for_a_refused_host_fits_the_entry() {
        let hint = |options: &str| {
            let text = format!("local: [{{port: 5173, to: relay.test{options}}}]\n");
            host_hint(&validate::parse(Path::new("adit.yaml"), text.as_bytes()).unwrap().local[0])
        };
        assert!(hint("").contains("'name: NAME' and 'host: rewrite'"));
        assert!(hint(", name: web").starts_with("write 'host: rewrite' in its entry"));
        let other = hint(", name: web, host: shop.test");
        assert!(other.starts_with("allow shop.test in") && other.contains("or write 'host: rewrite'"), "{other}");
        assert_eq!(hint(", name: web, host: rewrite"), "allow localhost:5173 in the service's own configuration");
    }

    #[test]
    fn a_command_is_new_if_another_program_would_run() {
        let config = |sni: &str, run: &str| {
            let text = format!(
                "sni: {{listen: \"127.0.0.1:0\", {sni}, routes: {{db.example.com: {{command: {{run: {run}}}}}}}}}"
            );
            validate::parse(Path::new("adit.yaml"), text.as_bytes()).unwrap()
        };
        let first = config("port_range: 21000-21100", "[ssh, \"{port}\"]");
        let news = |sni, run| new_commands(&first, &config(sni, run));
        assert!(news("port_range: 21000-21200, startup_timeout: 7s", "[ssh, \"{port}\"]").is_empty());
        assert_eq!(news("port_range: 21000-21100", "[sh, \"{port}\"]").len(), 1);
    }
}
