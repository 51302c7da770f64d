//! Claims on ports of Services, and the task that reconciles the claims of one Service.
//!
//! ```text
//!          claim()                  the cluster says so                 dropped, or given up by name
//! (none) ----------> Asked ------------------------------> Held ------------------------------------> (none)
//!                      |                                    |
//!                      +--- refused, or not in time         +--- undone by somebody: Over, with the reason
//! ```
//!
//! A dropped claim becomes Back once the cluster is restored. Until then, and a moment longer, visitors still arrive at
//! its tunnel's port.
//!
//! The task does not process events. It compares all claims with the cluster, so only the last state counts, in whatever
//! order clients come and go. Each claim has a generation, so that the end of an old claim never undoes a new one.

mod following;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::StreamExt;
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{info, warn};

use self::following::Following;
use super::{
    Authority, ExposeRequest, Relay, ServiceName,
    authorize::{Denied, Rules},
    condition::Condition,
    events::{self, Reason},
    kube::{Kind, Kube, KubeError, Pulse},
    lease,
    pods::{Behind, PodPort, named_ports},
    reconcile::{Done, Expiry, Failure, Step, Want},
    review::{Unreviewed, review},
    service::{Holder, PersonalPart, Takeover},
};
use crate::{drain::Drain, relay::auth::Key};

/// How long a client waits for its Service if the API server fails or does not answer.
const CLAIM_WITHIN: Duration = Duration::from_secs(15);

/// Pauses between two steps after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// How long a write without an answer may still take effect: API servers give a request 60 s (`--request-timeout`).
const DOUBT: Duration = Duration::from_secs(70);

/// How often the task checks the cluster in that time.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Debounce: other programs change objects in bursts.
const SETTLING: Duration = Duration::from_millis(200);

/// Pause before a watch that ended is opened again.
const WATCH_PAUSE: Duration = Duration::from_secs(5);

/// Takes over Services of the cluster for tunnels of this relay.
pub struct Exposer {
    pub(super) kube: Kube,
    pulse: Pulse,
    pub(super) relay: Relay,
    rules: Rules,
    authority: Authority,
    pub(super) drain: Drain,
    services: Mutex<HashMap<ServiceName, watch::Sender<Claims>>>,
    generation: AtomicU64,
    pub(super) expiry: Expiry,
}

/// Maximum number of laptops with a part of one Service. All parts are in one annotation.
const MOST_PARTS: usize = 64;

/// A port, or a part of one.
type Part = (u16, Option<Condition>);

type Claims = BTreeMap<Part, Arc<Asked>>;

/// Address of a port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodAddress {
    /// Name of the pod. Empty: the endpoint is not a pod.
    pub pod: String,
    pub address: SocketAddr,
}

/// Ready pods behind a port that is taken over, for requests that go to pods, and for all visitors after the end.
pub type Pods = watch::Sender<Vec<PodAddress>>;

/// Reasons why a takeover is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Unreviewed(#[from] Unreviewed),
    #[error("the relay is shutting down")]
    ShuttingDown,
    #[error("port {port} of Service {service} is taken over by {owner} already")]
    Taken { port: u16, service: ServiceName, owner: String },
    #[error(
        "port {port} of Service {service} is taken over in part: requests with {condition} go to {owner}. Take over a part too \
         (--personal), or wait until there is none"
    )]
    Parted { port: u16, service: ServiceName, condition: Box<Condition>, owner: String },
    #[error("requests with {condition} to port {port} of Service {service} go to {owner} already: take another value")]
    SamePart { port: u16, service: ServiceName, condition: Box<Condition>, owner: String },
    #[error("Service {service} has {MOST_PARTS} personal takeovers already, which is the limit")]
    ManyParts { service: ServiceName },
    /// The step for this claim failed.
    #[error("{0}")]
    Failed(String),
}

impl ClaimError {
    /// Returns whether another client of this relay has the port or part.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Taken { .. } | Self::Parted { .. } | Self::SamePart { .. })
    }
}

/// A claim as seen by its Service's task.
struct Asked {
    generation: u64,
    request: ExposeRequest,
    target_port: u16,
    at: Instant,
    /// Time of the claim, in RFC 3339.
    since: String,
    /// Channel for the ready pods behind the port.
    pods: Option<Arc<Pods>>,
    state: watch::Sender<State>,
}

/// How a claim has ended without its client, with the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimOver {
    /// For good: somebody has undone the takeover, it failed, or the relay shut down before it took effect.
    Undone(String),
    /// The relay no longer holds the Service: it did not renew its Lease in time, or its task has ended. The client may claim it again.
    Lost(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Asked,
    Held,
    Over(ClaimOver),
    /// The claim was dropped, and the cluster is restored.
    Back,
}

impl Asked {
    fn is_held(&self) -> bool {
        *self.state.borrow() == State::Held
    }

    fn is_asked(&self) -> bool {
        *self.state.borrow() == State::Asked
    }

    fn part(&self) -> Part {
        (self.request.port, self.request.condition.clone())
    }

    /// Adds the claim to the wanted state of its port. If several claims are for the port, the youngest knows the
    /// tunnels' port.
    fn join(&self, wanted: &mut BTreeMap<u16, Want>) {
        let (owner, since) = (self.request.owner.clone(), self.since.clone());
        let of_part = |requests: &Condition| PersonalPart {
            requests: requests.clone(),
            owner: owner.clone(),
            since: since.clone(),
        };
        let personal: Vec<_> = self.request.condition.iter().map(of_part).collect();
        let (target_port, replaces, is_held) = (self.target_port, self.request.replaces, self.is_held());
        match wanted.get_mut(&self.request.port) {
            Some(want) => {
                want.holder.personal.extend(personal);
                if !want.holder.owner.split(", ").any(|known| known == owner) {
                    want.holder.owner += &format!(", {owner}");
                }
                (want.target_port, want.is_held) = (target_port, want.is_held || is_held);
            }
            None => {
                let holder = Holder { owner, since, personal };
                wanted.insert(self.request.port, Want { holder, target_port, replaces, is_held });
            }
        }
    }
}

/// A Service's port that routes to a tunnel until this value is dropped.
pub struct Claim {
    exposer: Arc<Exposer>,
    asked: Arc<Asked>,
}

impl Claim {
    /// Waits until the claim has no effect any more: it was dropped, and the cluster is restored.
    pub fn back(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut state = self.asked.state.subscribe();
        async move {
            // An error means that the task has ended.
            let _ = state.wait_for(|state| matches!(state, State::Over(_) | State::Back)).await;
        }
    }

    /// Waits until the claim has ended without its client.
    pub fn over(&self) -> impl Future<Output = ClaimOver> + Send + use<> {
        let mut state = self.asked.state.subscribe();
        async move {
            loop {
                if let State::Over(over) = state.borrow_and_update().clone() {
                    return over;
                }
                if state.changed().await.is_err() {
                    // The claim was dropped by its owner.
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.exposer.give_up(&self.asked);
    }
}

impl Exposer {
    /// Starts the tasks. `only`: the only namespace whose Services may be taken over. Each task ends with `drain`, after
    /// it has restored its Service.
    pub fn start(
        client: kube::Client,
        relay: Relay,
        only: Option<String>,
        authority: Authority,
        drain: Drain,
    ) -> Arc<Self> {
        let rules = Rules { own_namespace: relay.namespace.clone(), only };
        let exposer = Arc::new(Self {
            kube: Kube::new(client),
            pulse: Pulse::default(),
            relay,
            rules,
            authority,
            drain: drain.clone(),
            services: Mutex::default(),
            generation: AtomicU64::new(1),
            expiry: Expiry::default(),
        });
        drain.spawn(exposer.clone().sweep());
        exposer
    }

    pub(super) fn only(&self) -> Option<&str> {
        self.rules.only.as_deref()
    }

    /// Returns whether the API server answers, and has done so for `long`.
    pub async fn hears_api_server(&self, long: Duration) -> bool {
        self.pulse.is_steady(&self.kube, long).await
    }

    /// Checks whether a client may take over a Service. `token`: its bearer token for the API server. If the token is
    /// reviewed, its user becomes the owner of the request.
    ///
    /// # Errors
    /// Fails if the key or RBAC does not allow it.
    pub async fn authorize(
        &self,
        key: &Key,
        token: Option<&str>,
        request: &mut ExposeRequest,
    ) -> Result<(), ClaimError> {
        self.rules.check(key, request)?;
        if self.authority == Authority::Kubernetes {
            let user = review(&self.kube, token, request).await?;
            request.owner = format!("{user}, {}", request.owner);
        }
        Ok(())
    }

    /// Routes a Service's port to the port of a tunnel, and waits until that is done. `pods`: gets the list of ready pods
    /// behind it. `after`: the claim that this one replaces, if it is for the same port.
    ///
    /// # Errors
    /// Fails if the Service exists and may not be replaced, if another client has the port, if a permission is missing,
    /// or if the Service could not be restored later.
    pub async fn claim(
        self: &Arc<Self>,
        request: ExposeRequest,
        target_port: u16,
        pods: Option<Arc<Pods>>,
        after: Option<&Claim>,
    ) -> Result<Claim, ClaimError> {
        if self.drain.is_draining() {
            return Err(ClaimError::ShuttingDown);
        }
        let asked = Arc::new(Asked {
            generation: self.generation.fetch_add(1, Ordering::Relaxed),
            target_port,
            at: Instant::now(),
            since: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            pods,
            state: watch::Sender::new(State::Asked),
            request,
        });
        let mut state = asked.state.subscribe();
        {
            let mut services = self.services();
            let claims = self.followed(&mut services, &asked.request.service);
            free(&claims.borrow(), &asked.request, after)?;
            claims.send_modify(|claims| drop(claims.insert(asked.part(), asked.clone())));
        }
        // From here on, dropping this future drops the claim.
        let claim = Claim { exposer: self.clone(), asked };
        loop {
            match state.borrow_and_update().clone() {
                State::Held => return Ok(claim),
                State::Over(ClaimOver::Undone(reason) | ClaimOver::Lost(reason)) => {
                    return Err(ClaimError::Failed(reason));
                }
                State::Asked | State::Back => {}
            }
            if state.changed().await.is_err() {
                return Err(ClaimError::ShuttingDown);
            }
        }
    }

    /// Restores a Service that a dead relay has left, unless it has a claim or another live relay.
    pub(super) fn tidy(self: &Arc<Self>, service: &ServiceName) {
        self.followed(&mut self.services(), service);
    }

    /// Returns the claims on a Service, and starts a task for it if there is none.
    fn followed<'s>(
        self: &Arc<Self>,
        services: &'s mut MutexGuard<'_, HashMap<ServiceName, watch::Sender<Claims>>>,
        name: &ServiceName,
    ) -> &'s watch::Sender<Claims> {
        services.entry(name.clone()).or_insert_with(|| {
            let claims = watch::Sender::new(Claims::new());
            let following = Following::new(self.clone(), name.clone(), claims.subscribe());
            let followed = Followed { exposer: self.clone(), name: name.clone(), claims: claims.subscribe() };
            self.drain.spawn(async move {
                let _followed = followed;
                following.run().await;
            });
            claims
        })
    }

    fn give_up(&self, asked: &Arc<Asked>) {
        if let Some(claims) = self.services().get(&asked.request.service) {
            claims.send_if_modified(|claims| {
                let part = asked.part();
                let is_current = claims.get(&part).is_some_and(|current| current.generation == asked.generation);
                is_current && claims.remove(&part).is_some()
            });
        }
    }

    /// Ends a claim with a reason for its client.
    fn end(&self, asked: &Arc<Asked>, over: ClaimOver) {
        asked.state.send_replace(State::Over(over));
        self.give_up(asked);
    }

    /// Removes a Service without claims. Returns whether it had none.
    fn forget(&self, name: &ServiceName) -> bool {
        let mut services = self.services();
        let is_free = services.get(name).is_none_or(|claims| claims.borrow().is_empty());
        is_free && {
            services.remove(name);
            true
        }
    }

    fn services(&self) -> MutexGuard<'_, HashMap<ServiceName, watch::Sender<Claims>>> {
        self.services.lock().expect("no panic while the lock is held")
    }
}

/// Ends the claims on a Service when its task ends for any reason, so that the next claim starts another task.
struct Followed {
    exposer: Arc<Exposer>,
    name: ServiceName,
    claims: watch::Receiver<Claims>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        let mut services = self.exposer.services();
        if services.get(&self.name).is_some_and(|claims| claims.subscribe().same_channel(&self.claims)) {
            services.remove(&self.name);
        }
        drop(services);
        for asked in self.claims.borrow().values() {
            let reason = format!("the relay no longer follows Service {}; its log has the reason", self.name);
            asked.state.send_replace(State::Over(ClaimOver::Lost(reason)));
        }
    }
}

/// Returns an error if another client has the port or the part. `after`: the claim that the request replaces.
fn free(claims: &Claims, request: &ExposeRequest, after: Option<&Claim>) -> Result<(), ClaimError> {
    let ExposeRequest { service, port, condition, .. } = request;
    let others =
        || claims.values().filter(|other| after.is_none_or(|after| after.asked.generation != other.generation));
    for other in others().filter(|other| other.request.port == *port) {
        let (service, owner) = (service.clone(), other.request.owner.clone());
        match (&other.request.condition, condition) {
            (None, _) => return Err(ClaimError::Taken { port: *port, service, owner }),
            (Some(theirs), None) => {
                return Err(ClaimError::Parted { port: *port, service, condition: Box::new(theirs.clone()), owner });
            }
            (Some(theirs), Some(ours)) if theirs == ours => {
                return Err(ClaimError::SamePart { port: *port, service, condition: Box::new(theirs.clone()), owner });
            }
            (Some(_), Some(_)) => {}
        }
    }
    let parts = others().filter(|other| other.request.condition.is_some()).count();
    match condition.is_some() && parts >= MOST_PARTS {
        true => Err(ClaimError::ManyParts { service: service.clone() }),
        false => Ok(()),
    }
}
