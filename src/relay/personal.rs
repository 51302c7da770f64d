//! A port of a Service that several laptops share. The relay decides for each request which laptop, or the pods, get it.
//!
//! ```text
//! visitor --> listener --> HTTP, by its first bytes --> front --> matches a condition --> the tunnel of that laptop
//!                    |                                       +--> matches none        --> a pod
//!                    +--> TLS, another protocol, or a server that speaks first ---------> a pod, byte by byte
//! ```
//!
//! All traffic that the relay cannot parse goes to the pods, and the relay changes as few bytes as a proxy can.

mod backend;
mod passing;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use http::{Request, Response, Version};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};
use tokio_util::task::TaskTracker;
use tracing::debug;

use self::backend::Ways;
use super::{
    expose::{PodAddress, Pods, condition::Condition},
    server::Server,
};
use crate::{
    config::{HttpOptions, Scheme},
    drain::Drain,
    frontend::{
        Connection,
        door::Door,
        http::{HttpFrontend, body::Body, error_page::Page, sites::Sites},
    },
    io::{
        Io,
        accept::{self, Place},
    },
    listener::mux::refuse_http,
    metrics::Metrics,
    routing::{Route, Target},
    tunnel::Manager,
};

/// How long the relay still accepts visitors after the Service routes to the pods again. A kube-proxy collects changes
/// for a second (`minSyncPeriod`), and in a large cluster needs another second to write them.
pub const LINGER: Duration = Duration::from_secs(3);

/// Number of open files reserved to refuse visitors when all others are in use.
const SPARE_FILES: usize = 8;

/// How long unused connections to a pod or a laptop stay open.
const IDLE: Duration = Duration::from_secs(60);

/// Target of requests that match no condition. Error pages name it.
const PODS: &str = "the pods";

/// Start of the target of requests for a client; the number of its tunnel follows.
const CLIENT: &str = "the client of tunnel ";

/// Counts of requests and connections, by destination.
#[derive(Default)]
pub struct Parted {
    /// Requests to laptops.
    pub to_laptops: AtomicU64,
    /// Requests to pods.
    pub to_pods: AtomicU64,
    /// Connections passed on to pods unchanged.
    pub passed: AtomicU64,
}

/// A shared port. It lives until the last tunnel on it ends.
pub struct SharedPort {
    /// Port of the relay that the Service's port routes to.
    pub port: u16,
    split: Arc<Split>,
    /// Drain of the listener and its connections: requests in progress are still answered.
    drain: Drain,
}

impl Drop for SharedPort {
    fn drop(&mut self) {
        self.drain.start();
    }
}

/// A tunnel's part of a shared port, until it is dropped.
pub struct Seat {
    shared: Arc<SharedPort>,
    tunnel: u64,
}

impl Seat {
    pub fn shared(&self) -> &Arc<SharedPort> {
        &self.shared
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared
            .split
            .parts
            .rcu(|parts| parts.iter().filter(|part| part.tunnel != self.tunnel).cloned().collect::<Vec<_>>());
    }
}

impl SharedPort {
    /// Serves the visitors of a port of Service `name` until the returned value is dropped.
    pub fn start(server: &Arc<Server>, name: String, listener: Arc<TcpListener>, port: u16) -> Arc<Self> {
        let split = Arc::new(Split::new(name, server.parted.clone()));
        let drain = server.drain().child();
        server.drain().spawn(serve(server.clone(), listener, split.clone(), drain.clone()));
        Arc::new(Self { port, split, drain })
    }

    /// Returns the channel that gets the list of ready pods.
    pub fn pods(&self) -> Arc<Pods> {
        self.split.pods.clone()
    }

    /// Routes the requests that match `condition` to a tunnel. `back`: resolves when its claim has no effect any more.
    pub fn sit(
        self: &Arc<Self>,
        tunnel: u64,
        condition: &Condition,
        back: impl Future<Output = ()> + Send + 'static,
    ) -> Seat {
        self.split.backs.spawn(back);
        self.split.parts.rcu(|parts| {
            let mut parts = Vec::clone(parts);
            parts.push(Part { tunnel, condition: condition.clone() });
            // The narrowest first. If two are equal, the oldest tunnel, which has the lowest number.
            parts.sort_by_key(|part| (std::cmp::Reverse(part.condition.rank()), part.tunnel));
            parts
        });
        Seat { shared: self.clone(), tunnel }
    }
}

#[derive(Clone)]
struct Part {
    tunnel: u64,
    condition: Condition,
}

/// Routing of requests between laptops and pods.
struct Split {
    /// `web.shop:80`.
    name: String,
    parts: ArcSwap<Vec<Part>>,
    pods: Arc<Pods>,
    /// One task for each claim of a tunnel, until that claim has no effect any more.
    backs: TaskTracker,
    /// Incremented with each connection to a pod, for round robin.
    turn: AtomicUsize,
    parted: Arc<Parted>,
    to_laptops: Arc<HttpOptions>,
    /// By version of HTTP: the relay uses the visitor's version for pods too, as if there were no relay.
    to_pods: [Arc<HttpOptions>; 2],
}

impl Split {
    fn new(name: String, parted: Arc<Parted>) -> Self {
        let options = |scheme: Option<Scheme>| {
            // The service itself decides on CORS and redirects.
            let allow_origins = vec!["*".to_owned()];
            Arc::new(HttpOptions { scheme, allow_origins, rewrite_location: Some(false), ..HttpOptions::default() })
        };
        Self {
            name,
            parts: ArcSwap::default(),
            pods: Arc::new(watch::Sender::new(Vec::new())),
            backs: TaskTracker::new(),
            turn: AtomicUsize::new(0),
            parted,
            to_laptops: options(None),
            to_pods: [options(Some(Scheme::Http)), options(Some(Scheme::H2c))],
        }
    }

    /// Returns the tunnel for a request. `None`: the request goes to the pods.
    fn tunnel<B>(&self, host: &str, request: &Request<B>) -> Option<u64> {
        self.parts.load().iter().find(|part| part.condition.matches(host, request)).map(|part| part.tunnel)
    }

    /// Returns the pods in the order in which to try them.
    fn pods_in_turn(&self) -> Vec<PodAddress> {
        let mut pods = self.pods.borrow().clone();
        if !pods.is_empty() {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % pods.len();
            pods.rotate_left(turn);
        }
        pods
    }
}

impl Sites for Split {
    fn answer(&self, _: &str, _: &Request<Body>, _: SocketAddr) -> Option<Response<Body>> {
        None
    }

    fn route(&self, host: &str, request: &Request<Body>, _: &Door) -> Result<Route, Page> {
        let (counter, target, options) = match self.tunnel(host, request) {
            Some(tunnel) => (&self.parted.to_laptops, format!("{CLIENT}{tunnel}").into(), &self.to_laptops),
            None => {
                let is_h2 = request.version() == Version::HTTP_2;
                (&self.parted.to_pods, PODS.into(), &self.to_pods[usize::from(is_h2)])
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(Route { name: host.into(), target: Target::Named(target), idle_timeout: IDLE, options: options.clone() })
    }

    /// The headers of an ingress stay: without the relay they would reach the pods too.
    fn is_first(&self) -> bool {
        false
    }
}

/// Passes visitors to the pods behind a port after its client is gone.
#[derive(Clone)]
pub struct Passage(Arc<Split>);

impl Passage {
    /// Returns a passage. `name`: the Service's port for messages. `pods`: gets the list of ready pods.
    pub fn new(server: &Server, name: String, pods: Arc<Pods>) -> Self {
        Self(Arc::new(Split { pods, ..Split::new(name, server.parted.clone()) }))
    }

    /// Returns whether there are pods to pass visitors to.
    pub fn has_pods(&self) -> bool {
        !self.0.pods.borrow().is_empty()
    }

    /// Joins a visitor with a pod, byte by byte.
    pub async fn pass(&self, server: &Server, visitor: TcpStream, peer: SocketAddr, place: Place) {
        place.settle();
        let local = visitor.local_addr().unwrap_or(peer);
        passing::pass(server, &self.0, visitor, None, &[], &Connection::remote(0, peer, local, place)).await;
    }

    /// Passes the visitors of a port to pods until the cluster sends no more. `back`: resolves when the Service is
    /// restored. Visitors in progress go on.
    pub async fn serve(self, server: &Arc<Server>, listener: &TcpListener, back: impl Future<Output = ()>) {
        let serve = |visitor: TcpStream, peer: SocketAddr, place: Place| {
            let (server, this) = (server.clone(), self.clone());
            let drain = server.drain().clone();
            drain.spawn(async move { this.pass(&server, visitor, peer, place).await });
        };
        let refuse = |mut visitor: TcpStream, _| async move { visitor.reset() };
        let over = async {
            back.await;
            sleep(LINGER).await;
        };
        tokio::select! {
            never = accept::accept(listener, server.visitors(), 1, serve, refuse) => match never {},
            () = over => {}
        }
    }
}

async fn serve(server: Arc<Server>, listener: Arc<TcpListener>, split: Arc<Split>, drain: Drain) {
    let ways = Arc::new(Ways::new(server.clone(), split.clone(), drain.clone()));
    let tunnels = Manager::new(ways, drain.clone());
    let front = HttpFrontend::new(split.clone(), tunnels, Arc::new(Metrics::default()), drain.clone());
    let mut id = 0;
    let serve = |stream: TcpStream, peer: SocketAddr, place: Place| {
        id += 1;
        let local = stream.local_addr().unwrap_or(peer);
        let connection = Arc::new(Connection::remote(id, peer, local, place.clone()));
        let visiting = passing::visit(server.clone(), split.clone(), front.clone(), stream, connection, drain.clone());
        // Runs on the relay's own drain, so that visitors in progress go on after the port is released.
        let visiting = place.run(visiting);
        server.drain().spawn(async move {
            if visiting.await.is_none() {
                debug!(%peer, "connection of a visitor ended: it was silent, and others came");
            }
        });
    };
    let refuse = |stream, full| refuse_http(stream, full);
    tokio::select! {
        never = accept::accept(&listener, server.visitors(), SPARE_FILES, serve, refuse) => match never {},
        () = drain.started() => {}
    }
    // The relay ends, and the cluster does not know yet.
    if server.drain().is_draining() {
        split.backs.close();
        let back = split.backs.clone();
        Passage(split).serve(&server, &listener, async move { back.wait().await }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::http::body::body_of;

    fn split(parts: &[(u64, &str)]) -> Split {
        let split = Split::new("web.shop:80".into(), Arc::default());
        let parts =
            parts.iter().map(|(tunnel, json)| Part { tunnel: *tunnel, condition: Condition::parse(json).unwrap() });
        let mut parts: Vec<_> = parts.collect();
        parts.sort_by_key(|part| (std::cmp::Reverse(part.condition.rank()), part.tunnel));
        split.parts.store(Arc::new(parts));
        split
    }

    #[test]
    fn the_narrowest_condition_counts_and_then_the_oldest() {
        let split = split(&[
            (4, r#"{"path":"/api"}"#),
            (1, r#"{"headers":{"x-user":"anna"}}"#),
            (2, r#"{"headers":{"x-user":"anna"},"path":"/api"}"#),
            (3, r#"{"path":"/api/v1"}"#),
            (5, r#"{"headers":{"x-team":"red"}}"#),
        ]);
        let ask = |path: &str, headers: &[(&str, &str)]| {
            let request = Request::get(path);
            let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            let request = request.body(body_of("")).unwrap();
            split.route("web", &request, &Door::Closed).unwrap().target
        };
        for (path, headers, target) in [
            ("/", &[][..], PODS),
            ("/", &[("x-user", "anna")], "the client of tunnel 1"),
            ("/api", &[("x-user", "anna")], "the client of tunnel 2"),
            ("/api/v1", &[], "the client of tunnel 3"),
            ("/api/v2", &[], "the client of tunnel 4"),
            ("/", &[("x-user", "anna"), ("x-team", "red")], "the client of tunnel 1"),
            ("/", &[("x-user", "bo")], PODS),
        ] {
            assert_eq!(ask(path, headers), Target::Named(target.into()), "{path} {headers:?}");
        }
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!((of(&split.parted.to_laptops), of(&split.parted.to_pods)), (5, 2));
    }
}
