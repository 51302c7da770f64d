//! The tunnels of a relay: opened, taken over, closed.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::{Server, Session, quotas::Quota};
use crate::{
    config::names::is_label,
    relay::{auth, ports::PortError, registrar::Registration},
    wire::relay::{Kind, Token},
};

/// How long a tunnel that comes back waits for what is left of itself.
const TAKE_OVER: Duration = Duration::from_secs(2);

/// For how long a name waits for a client that was lost.
const NAME_REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// A public port or name, and the client behind it.
pub struct Tunnel {
    pub(super) number: u64,
    /// As its client numbers it.
    pub(super) id: u32,
    pub(super) session: Arc<Session>,
    pub(super) kind: Kind,
    /// 0 for HTTP.
    pub(super) port: u16,
    pub(super) name: String,
    pub(super) registration: Option<Registration>,
    pub(super) resume: Token,
    pub(super) streams: AtomicUsize,
    pub(super) pending: AtomicUsize,
    pub(super) rate: Mutex<(f64, Instant)>,
    pub(super) gone: CancellationToken,
    /// Its public port is closed.
    pub(super) unbound: CancellationToken,
}

/// A tunnel as `/` and `adit status` show it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct TunnelSnapshot {
    pub key: String,
    pub client: SocketAddr,
    /// `tcp` or `http`.
    pub kind: &'static str,
    pub public: String,
    pub streams: usize,
}

impl Server {
    pub(super) async fn open(
        self: &Arc<Self>,
        session: &Arc<Session>,
        id: u32,
        kind: Kind,
        port: u16,
        name: &str,
        resume: Token,
    ) -> Result<Arc<Tunnel>, String> {
        self.take_over(session, resume).await;
        let count = self.state().tunnels.values().filter(|tunnel| tunnel.session.key.name == session.key.name).count();
        if count >= self.options.limits.tunnels_per_key {
            return Err(self.notices.used_up(Quota::Tunnels, &self.options.limits, &session.key.name));
        }
        let (listener, port, name) = match kind {
            Kind::Tcp => {
                let opened = self.ports().open(&session.key, port, &resume);
                let (listener, port) = opened.map_err(|error: PortError| error.to_string())?;
                (Some(listener), port, String::new())
            }
            Kind::Http => (None, 0, self.checked_name(session, name, &resume)?),
            Kind::Service | Kind::ReplacedService => {
                let opened = self.ports().open(&session.key, 0, &resume);
                let (listener, port) = opened.map_err(|error: PortError| error.to_string())?;
                (Some(listener), port, name.to_owned())
            }
        };
        let registration = self.register(session, kind, &name, port).await?;
        let resume = auth::random().map_err(|error| error.to_string())?;
        let tunnel = {
            let mut state = self.state();
            if kind == Kind::Http && state.tunnels.values().any(|tunnel| tunnel.name == name) {
                return Err(format!("the name {name} is taken"));
            }
            state.lost_names.remove(&name);
            state.next_tunnel += 1;
            let rate = Mutex::new((f64::from(self.options.limits.visitors_per_second), Instant::now()));
            let tunnel = Arc::new(Tunnel {
                number: state.next_tunnel,
                id,
                session: session.clone(),
                kind,
                port,
                name,
                registration,
                resume,
                streams: AtomicUsize::new(0),
                pending: AtomicUsize::new(0),
                rate,
                gone: CancellationToken::new(),
                unbound: CancellationToken::new(),
            });
            state.tunnels.insert(tunnel.number, tunnel.clone());
            tunnel
        };
        info!(key = session.key.name, public = self.public_address(&tunnel), port = tunnel.port, "relay: tunnel open");
        match listener {
            Some(listener) => self.drain.spawn(self.clone().serve_port(listener, tunnel.clone())),
            None => self.tell_names(),
        }
        Ok(tunnel)
    }

    pub(super) async fn register(
        &self,
        session: &Session,
        kind: Kind,
        name: &str,
        port: u16,
    ) -> Result<Option<Registration>, String> {
        if !matches!(kind, Kind::Service | Kind::ReplacedService) {
            return Ok(None);
        }
        let Some(registrar) = &self.options.registrar else {
            return Err(
                "this relay makes no Services: it is in no cluster, or was started without --register".to_owned()
            );
        };
        let owner = format!("{} ({})", session.key.name, session.peer.ip());
        let wanted = Registration::parse(name, kind == Kind::ReplacedService, owner);
        let wanted = wanted.ok_or_else(|| format!("{name:?} is not service.namespace:port"))?;
        registrar.register(&wanted, port).await?;
        Ok(Some(wanted))
    }

    /// What is left of a client that was cut off makes room for its return.
    pub(super) async fn take_over(&self, session: &Session, resume: Token) {
        let same = |tunnel: &&Arc<Tunnel>| {
            resume != [0; 16] && tunnel.resume == resume && tunnel.session.key.name == session.key.name
        };
        let Some(old) = self.state().tunnels.values().find(same).cloned() else { return };
        self.close(&old, false);
        if old.kind != Kind::Http {
            // What happens if it takes longer is told by the port.
            let _ = timeout(TAKE_OVER, old.unbound.cancelled()).await;
        }
    }

    pub(super) fn checked_name(&self, session: &Session, name: &str, resume: &Token) -> Result<String, String> {
        if self.options.domain.is_none() {
            return Err("this relay has no domain for names".to_owned());
        }
        let name = match name.is_empty() {
            true => {
                let random = auth::random::<5>().map_err(|error| error.to_string())?;
                random
                    .iter()
                    .map(|byte| char::from(b"abcdefghijkmnpqrstuvwxyz23456789"[usize::from(byte % 32)]))
                    .collect()
            }
            false => name.to_ascii_lowercase(),
        };
        if !is_label(&name) {
            return Err(format!("{name:?} cannot be a part of a hostname"));
        }
        if !session.key.allows_name(&name) {
            return Err(format!("the key may not have the name {name}"));
        }
        let kept = self.state().lost_names.get(&name).copied();
        match kept.is_some_and(|(token, until)| token != *resume && until > Instant::now()) {
            true => Err(format!("the name {name} is kept for another client")),
            false => Ok(name),
        }
    }

    pub(super) fn public_address(&self, tunnel: &Tunnel) -> String {
        match (tunnel.kind, &self.options.domain) {
            (Kind::Service | Kind::ReplacedService, _) => tunnel.name.clone(),
            (Kind::Http, Some(domain)) => {
                let (scheme, port) = self.options.http_public;
                let port = port.map_or(String::new(), |port| format!(":{port}"));
                format!("{scheme}://{}.{domain}{port}", tunnel.name)
            }
            _ => String::new(),
        }
    }

    /// Returns where a tunnel is reached, for people who run the relay.
    pub(super) fn shown(&self, tunnel: &Tunnel) -> String {
        match tunnel.kind {
            Kind::Http | Kind::Service | Kind::ReplacedService => self.public_address(tunnel),
            Kind::Tcp => SocketAddr::new(self.options.bind, tunnel.port).to_string(),
        }
    }

    /// Ends a tunnel; unless its client wanted that, its port or name waits for the client's return.
    pub(super) fn close(&self, tunnel: &Tunnel, is_clean: bool) {
        if self.state().tunnels.remove(&tunnel.number).is_none() {
            return;
        }
        tunnel.gone.cancel();
        if let (Some(registrar), Some(registration)) = (self.options.registrar.clone(), tunnel.registration.clone()) {
            // In a drain it is the last that is done.
            self.drain.spawn(async move { registrar.unregister(&registration).await });
        }
        if !is_clean && !tunnel.session.is_v1 {
            match tunnel.kind {
                Kind::Tcp | Kind::Service | Kind::ReplacedService => self.ports().remember(tunnel.resume, tunnel.port),
                Kind::Http => {
                    let mut state = self.state();
                    state.lost_names.retain(|_, (_, until)| *until > Instant::now());
                    state.lost_names.insert(tunnel.name.clone(), (tunnel.resume, Instant::now() + NAME_REMEMBERED));
                }
            }
        }
        if tunnel.kind == Kind::Http {
            self.tell_names();
        }
    }

    pub(super) fn forget(&self, session: &Session, is_clean: bool) {
        session.gone.cancel();
        session.idle.close();
        let tunnels: Vec<_> = {
            let mut state = self.state();
            state.sessions.remove(&session.token);
            state.pending.retain(|_, pending| pending.session != session.token);
            state.tunnels.values().filter(|tunnel| tunnel.session.token == session.token).cloned().collect()
        };
        tunnels.iter().for_each(|tunnel| self.close(tunnel, is_clean));
    }

    pub(super) fn tell_names(&self) {
        let names = self
            .state()
            .tunnels
            .values()
            .filter(|tunnel| tunnel.kind == Kind::Http)
            .map(|tunnel| tunnel.name.clone())
            .collect();
        (self.names_changed)(names);
    }

    /// Returns the tunnel of a name.
    pub fn tunnel(&self, name: &str) -> Option<Arc<Tunnel>> {
        self.state().tunnels.values().find(|tunnel| tunnel.kind == Kind::Http && tunnel.name == name).cloned()
    }

    /// Returns every tunnel, sorted.
    pub fn snapshot(&self) -> Vec<TunnelSnapshot> {
        let tunnels: Vec<_> = self.state().tunnels.values().cloned().collect();
        let mut snapshots: Vec<_> = tunnels
            .iter()
            .map(|tunnel| TunnelSnapshot {
                key: tunnel.session.key.name.clone(),
                client: tunnel.session.peer,
                kind: match tunnel.kind {
                    Kind::Tcp => "tcp",
                    Kind::Http => "http",
                    Kind::Service | Kind::ReplacedService => "service",
                },
                public: self.shown(tunnel),
                streams: tunnel.streams.load(Ordering::Relaxed),
            })
            .collect();
        snapshots.sort_by(|a, b| a.public.cmp(&b.public));
        snapshots
    }
}

impl Tunnel {
    /// A token bucket.
    pub(super) fn takes_another(&self, per_second: u32) -> bool {
        let mut rate = self.rate.lock().expect("no panic while the lock is held");
        let (most, now) = (f64::from(per_second), Instant::now());
        let tokens = (rate.0 + now.duration_since(rate.1).as_secs_f64() * most).min(most);
        *rate = ((tokens - 1.0).max(0.0), now);
        tokens >= 1.0
    }

    /// Returns where its client is.
    pub fn client(&self) -> SocketAddr {
        self.session.peer
    }

    /// Resolves when its client is gone.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }
}
