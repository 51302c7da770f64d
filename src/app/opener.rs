//! Opens targets for the API.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

use super::{
    BindError,
    opened::Opened,
    reach::{At, LOOK_UP, Reach, ReachError},
};
use crate::{
    admin::api::{
        FORMAT,
        answers::Problem,
        open::{Held, LocalPort, MALFORMED, OpenAnswer, OpenKind, OpenRequest, Opener, PortRow, ServicePorts},
    },
    config::Namespace,
    drain::Drain,
    io::BoxedIo,
    k8s::ServicePort,
    routing::{Named, NamedError, Route, SharedRouter},
    tunnel::reach::passes,
};

/// Time for a listener to close, so that its port can be bound again.
const CLOSES_WITHIN: Duration = Duration::from_secs(1);

/// Opens targets with the tunnels of a running adit.
pub struct Opening {
    pub reach: Reach,
    pub router: SharedRouter,
    pub served: Mutex<Vec<Served>>,
    pub turns: Turns,
}

/// Name of the route, and the wanted local port.
type Wanted = (Arc<str>, Option<u16>);

/// Requests in progress by route and wanted port, one at a time: the next gets the local port of the one before.
#[derive(Default)]
pub struct Turns(Mutex<HashMap<Wanted, Weak<Semaphore>>>);

impl Turns {
    fn of(&self, named: &Named) -> Arc<Semaphore> {
        let mut turns = self.0.lock().expect("no panic while the lock is held");
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = turns.entry((named.route.name.clone(), named.local_port)).or_default();
        turn.upgrade().unwrap_or_else(|| {
            let first = Arc::new(Semaphore::new(1));
            *turn = Arc::downgrade(&first);
            first
        })
    }
}

/// A target with its local ports.
pub struct Served {
    /// Where the ports lead. A name leads elsewhere after a change of the current context or of the configuration.
    route: Route,
    /// Namespace of the request.
    namespace: Option<String>,
    /// The local port that the request wanted.
    wanted: Option<u16>,
    opened: Opened,
    /// Ends the ports.
    drain: Drain,
}

impl Served {
    fn is_for(&self, named: &Named) -> bool {
        self.route == named.route && self.wanted == named.local_port
    }
}

impl Opening {
    fn named(&self, request: &OpenRequest) -> Result<Named, NamedError> {
        let namespace: Option<Namespace> = request.namespace.as_deref().map(str::parse).transpose()?;
        self.router.load().named(&request.target, namespace.as_ref())
    }

    async fn port(&self, request: OpenRequest) -> Result<OpenAnswer, ReachError> {
        let named = self.named(&request)?;
        // With a wait of zero, do not check: a client of the port then gets the error.
        let wait = (request.wait_ms != Some(0)).then(|| request.wait());
        let turn = self.turns.of(&named);
        // A request that waits for longer tries by itself.
        let _turn = timeout(request.wait().max(LOOK_UP), turn.acquire()).await;
        let before = self.served(&named);
        if let Some(opened) = before.as_ref().filter(|opened| opened.has_ports_of(&named.route.target)) {
            if wait.is_some() {
                self.reach.check(&named, wait, |_| {}).await?;
            }
            return Ok(answer(&request.target, opened));
        }
        let reach = Reach { clusters: self.reach.clusters.clone(), forwards: self.reach.forwards.child() };
        let at = match (before, named.listener, named.local_port) {
            (Some(opened), ..) => At::Served(opened.address),
            (None, Some(listener), None) => At::Served(listener),
            (None, ..) => {
                let (listener, address) = self.bind(&named, &request).await?;
                At::Bound(listener, address)
            }
        };
        let opened = reach.open(None, &named, at, wait, |_| {}).await?;
        let answer = answer(&request.target, &opened);
        let drain = reach.forwards.drain().clone();
        let (namespace, wanted) = (request.namespace, named.local_port);
        let mut all = self.served.lock().expect("no panic while the lock is held");
        match all.iter_mut().find(|served| served.is_for(&named)) {
            Some(served) => served.opened = opened,
            None => all.push(Served { route: named.route, namespace, wanted, opened, drain }),
        }
        Ok(answer)
    }

    /// Returns the local ports that lead where the name leads now.
    fn served(&self, named: &Named) -> Option<Opened> {
        let all = self.served.lock().expect("no panic while the lock is held");
        all.iter().find(|served| served.is_for(named)).map(|served| served.opened.clone())
    }

    /// Binds the local port of a request. A wanted port at which the same request leads elsewhere is closed first: programs that
    /// use this port have no other way to the new target.
    async fn bind(&self, named: &Named, request: &OpenRequest) -> Result<(TcpListener, SocketAddr), BindError> {
        let wanted = named.local_port;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, wanted.unwrap_or(0)));
        let is_same = |served: &mut Served| {
            wanted.is_some()
                && (served.wanted, &served.namespace, &served.route.name)
                    == (wanted, &request.namespace, &named.route.name)
        };
        let before: Vec<Served> = {
            let mut all = self.served.lock().expect("no panic while the lock is held");
            all.extract_if(.., is_same).collect()
        };
        before.iter().for_each(|served| served.drain.start());
        let until = Instant::now() + CLOSES_WITHIN;
        loop {
            match self.reach.forwards.bind(address, &request.target) {
                Err(_) if !before.is_empty() && Instant::now() < until => sleep(Duration::from_millis(10)).await,
                bound => return bound,
            }
        }
    }

    async fn connect(&self, request: OpenRequest) -> Result<(BoxedIo, Held), ReachError> {
        let route = self.named(&request)?.route;
        let (lease, stream) = self.reach.stream(&route, Instant::now() + request.wait()).await?;
        Ok((stream, Held { tunnel: lease.id(), lease: Box::new(lease) }))
    }
}

impl Opener for Opening {
    fn open(&self, request: OpenRequest) -> BoxFuture<'_, Result<OpenAnswer, Problem>> {
        Box::pin(async move {
            let done = match request.kind {
                OpenKind::Port => self.port(request).await,
                OpenKind::Check | OpenKind::Stream => match self.named(&request) {
                    Ok(named) => {
                        let checked = self.reach.check(&named, Some(request.wait()), |_| {}).await;
                        checked.map(|checked| OpenAnswer {
                            format: FORMAT,
                            target: request.target,
                            address: None,
                            url: None,
                            port: checked.port.as_ref().map(row),
                            service: None,
                        })
                    }
                    Err(error) => Err(error.into()),
                },
            };
            done.map_err(|error| problem(&error))
        })
    }

    fn stream(&self, request: OpenRequest) -> BoxFuture<'_, Result<(BoxedIo, Held), Problem>> {
        Box::pin(async move { self.connect(request).await.map_err(|error| problem(&error)) })
    }
}

fn row(port: &ServicePort) -> PortRow {
    PortRow { number: port.number, name: port.name.clone() }
}

fn answer(target: &str, opened: &Opened) -> OpenAnswer {
    let service = opened.service.as_ref().map(|service| ServicePorts {
        name: service.name.clone(),
        ports: service.ports.iter().map(|(port, address)| LocalPort { port: row(port), address: *address }).collect(),
    });
    OpenAnswer {
        format: FORMAT,
        target: target.to_owned(),
        address: Some(opened.address),
        url: opened.url(),
        port: opened.port.as_ref().map(row),
        service,
    }
}

fn problem(error: &ReachError) -> Problem {
    let told = error.told();
    let (code, may_pass) = match error {
        ReachError::Open { error, .. } => (error.code().as_str(), passes(error)),
        ReachError::Named(_) => (MALFORMED, false),
        ReachError::Bind(_) => ("port-taken", false),
    };
    Problem { code: Some(code.to_owned()), message: told.message, cause: told.cause, hint: told.hint, may_pass }
}
