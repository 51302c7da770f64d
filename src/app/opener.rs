//! Opens targets for the API.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Mutex,
};

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{
    opened::Opened,
    reach::{At, Reach, ReachError},
};
use crate::{
    admin::api::{
        FORMAT,
        answers::Problem,
        open::{Held, LocalPort, MALFORMED, OpenAnswer, OpenKind, OpenRequest, Opener, PortRow, ServicePorts},
    },
    config::Namespace,
    io::BoxedIo,
    k8s::ServicePort,
    routing::{Named, NamedError, SharedRouter},
    tunnel::reach::passes,
};

/// Opens targets with the tunnels of a running adit.
pub struct Opening {
    pub reach: Reach,
    pub router: SharedRouter,
    /// Open local ports, by target and namespace of the request.
    pub opened: Mutex<HashMap<(String, Option<String>), Opened>>,
}

impl Opening {
    fn named(&self, request: &OpenRequest) -> Result<Named, NamedError> {
        let namespace: Option<Namespace> = request.namespace.as_deref().map(str::parse).transpose()?;
        self.router.load().named(&request.target, namespace.as_ref())
    }

    async fn port(&self, request: OpenRequest) -> Result<OpenAnswer, ReachError> {
        let key = (request.target.clone(), request.namespace.clone());
        let named = self.named(&request)?;
        // With a wait of zero, do not check: a client of the port then gets the error.
        let wait = (request.wait_ms != Some(0)).then(|| request.wait());
        let before = self.opened.lock().expect("no panic while the lock is held").get(&key).cloned();
        if let Some(opened) = before {
            if wait.is_some() {
                self.reach.check(&named, wait, |_| {}).await?;
            }
            return Ok(answer(&request.target, &opened));
        }
        let at = match (named.listener, named.local_port) {
            (Some(listener), None) => At::Served(listener),
            (_, port) => {
                let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port.unwrap_or(0)));
                let (listener, address) = self.reach.forwards.bind(wanted, &request.target)?;
                At::Bound(listener, address)
            }
        };
        let opened = self.reach.open(None, &named, at, wait, |_| {}).await?;
        let answer = answer(&request.target, &opened);
        self.opened.lock().expect("no panic while the lock is held").insert(key, opened);
        Ok(answer)
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
