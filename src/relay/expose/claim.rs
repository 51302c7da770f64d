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

use super::{
    Authority, ExposeRequest, Relay, ServiceName,
    authorize::{Denied, Rules},
    condition::Condition,
    events::{self, Reason},
    kube::{Kind, Kube, KubeError},
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
    #[error("Service {service} is taken over in {MOST_PARTS} parts already")]
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

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Asked,
    Held,
    Over(String),
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

    /// Waits until somebody else has ended the claim. Returns the reason.
    pub fn over(&self) -> impl Future<Output = String> + Send + use<> {
        let mut state = self.asked.state.subscribe();
        async move {
            loop {
                if let State::Over(reason) = state.borrow_and_update().clone() {
                    return reason;
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
                State::Over(reason) => return Err(ClaimError::Failed(reason)),
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
            self.drain.spawn(following.run());
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
    fn end(&self, asked: &Arc<Asked>, reason: String) {
        asked.state.send_replace(State::Over(reason));
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

/// The task of one Service.
struct Following {
    exposer: Arc<Exposer>,
    name: ServiceName,
    claims: watch::Receiver<Claims>,
    /// Ports, and parts of ports, that this task has routed to laptops.
    in_effect: Claims,
    /// Named ports of pods, by UID of the pod. `None`: the relay may not read the pod.
    named: HashMap<String, Option<BTreeMap<String, u16>>>,
    renewed: Instant,
    pause: Duration,
    /// Until then, changes without an answer may still take effect.
    doubt: Option<Instant>,
    /// Record on the Service after the last step.
    known: Option<Takeover>,
    /// Last logged message, so that it is logged only once.
    said: Option<String>,
    looks: Option<Looks>,
}

/// Watches that notify of changes, until they are dropped.
struct Looks {
    changed: Arc<Notify>,
    _end: DropGuard,
}

fn shown(condition: Option<&Condition>) -> String {
    condition.map_or_else(String::new, Condition::to_string)
}

impl Following {
    fn new(exposer: Arc<Exposer>, name: ServiceName, claims: watch::Receiver<Claims>) -> Self {
        Self {
            exposer,
            name,
            claims,
            in_effect: BTreeMap::new(),
            named: HashMap::new(),
            renewed: Instant::now(),
            pause: FIRST_PAUSE,
            doubt: None,
            known: None,
            said: None,
            looks: None,
        }
    }

    async fn run(mut self) {
        loop {
            let claims = self.claims.borrow_and_update().clone();
            if self.exposer.drain.is_draining() {
                // On a drain, held claims end without a reason: their clients reconnect to another relay.
                for asked in claims.values() {
                    match asked.is_held() {
                        true => self.exposer.give_up(asked),
                        false => self.exposer.end(asked, "the relay is shutting down".to_owned()),
                    }
                }
            }
            let claims = self.claims.borrow_and_update().clone();
            let held = claims.values().filter(|asked| asked.is_held());
            // Only one new claim at a time, so that its error does not affect the others.
            let next = claims.values().filter(|asked| asked.is_asked()).min_by_key(|asked| asked.generation);
            let working: Vec<Arc<Asked>> = held.chain(next).cloned().collect();
            let done = self.step(&working).await;
            let wait = match done {
                Ok(done) => {
                    self.pause = FIRST_PAUSE;
                    self.said = None;
                    self.known.clone_from(&done.takeover);
                    // Requests outside a part need the pods at once. A whole takeover needs them only at its end.
                    let is_parted = working.iter().any(|asked| asked.request.condition.is_some());
                    if is_parted {
                        self.tell_pods(&working, &done, is_parted).await;
                    }
                    self.succeeded(&working, done.service.as_ref()).await;
                    if !is_parted {
                        self.tell_pods(&working, &done, is_parted).await;
                    }
                    match (working.is_empty(), self.doubt) {
                        (true, None) if self.exposer.forget(&self.name) => return,
                        // A new claim has just been added.
                        (true, None) => continue,
                        (true, Some(_)) if self.exposer.drain.is_draining() => return,
                        _ if claims.values().any(|asked| asked.is_asked()) => Duration::ZERO,
                        (_, Some(_)) => LOOK_AGAIN,
                        (false, None) => lease::RENEW_EVERY.saturating_sub(self.renewed.elapsed()),
                    }
                }
                Err(failure) => self.failed(failure, &working, next).await,
            };
            self.wait(wait).await;
        }
    }

    async fn step(&mut self, working: &[Arc<Asked>]) -> Result<Done, Failure> {
        let exposer = self.exposer.clone();
        let mut by_age: Vec<_> = working.iter().collect();
        by_age.sort_by_key(|asked| asked.generation);
        let mut wanted = BTreeMap::new();
        by_age.into_iter().for_each(|asked| asked.join(&mut wanted));
        let renews = self.renewed.elapsed() >= lease::RENEW_EVERY;
        let step = Step {
            kube: &exposer.kube,
            relay: &exposer.relay,
            name: &self.name,
            wanted: &wanted,
            known: self.known.as_ref(),
            renews,
            is_forced: false,
            expiry: &exposer.expiry,
        };
        let done = step.run().await;
        if self.doubt.is_some_and(|until| until <= Instant::now()) {
            self.doubt = None;
        }
        match &done {
            Err(failure) if failure.is_in_doubt() => self.doubt = Some(Instant::now() + DOUBT),
            Ok(_) if renews || self.in_effect.is_empty() => self.renewed = Instant::now(),
            _ => {}
        }
        done
    }

    async fn succeeded(&mut self, working: &[Arc<Asked>], service: Option<&Value>) {
        for asked in working {
            asked.state.send_if_modified(|state| {
                let is_new = *state == State::Asked;
                if is_new {
                    *state = State::Held;
                }
                is_new
            });
        }
        let now = working.iter().map(|asked| (asked.part(), asked.clone())).collect();
        let before = std::mem::replace(&mut self.in_effect, now);
        for old in before.values() {
            let is_current = |now: &Arc<Asked>| now.generation == old.generation;
            if !self.in_effect.get(&old.part()).is_some_and(is_current) && old.is_held() {
                old.state.send_replace(State::Back);
            }
        }
        let is_new = |(part, _): &(&Part, &Arc<Asked>)| !before.contains_key(*part);
        let taken = self.in_effect.iter().filter(is_new);
        let taken: Vec<(Part, String)> =
            taken.map(|(part, asked)| (part.clone(), asked.request.owner.clone())).collect();
        let back: Vec<Part> = before.into_keys().filter(|part| !self.in_effect.contains_key(part)).collect();
        let relay = Relay::shown(&self.exposer.relay.to_string());
        for ((port, condition), owner) in taken {
            info!(service = %self.name, port, condition = shown(condition.as_ref()), owner, "relay: Service port taken over");
            let message = match condition {
                Some(condition) => {
                    format!("requests to port {port} with {condition} are routed to {owner} through relay {relay}")
                }
                None => format!("port {port} is routed to {owner} through relay {relay}"),
            };
            self.tell(service, Reason::TakenOver, &message).await;
        }
        for (port, condition) in back {
            info!(service = %self.name, port, condition = shown(condition.as_ref()), "relay: Service port restored");
            let is_parted = self.in_effect.keys().any(|(other, _)| *other == port);
            let message = match condition.filter(|_| is_parted) {
                Some(condition) => format!("requests to port {port} with {condition} are routed to the pods again"),
                None => format!("port {port} is restored"),
            };
            self.tell(service, Reason::GivenBack, &message).await;
        }
    }

    /// Publishes the pods behind the ports that are taken over.
    async fn tell_pods(&mut self, working: &[Arc<Asked>], done: &Done, warns: bool) {
        let uids: Vec<&String> = done.behind.values().flatten().filter_map(|b| Some(&b.pod.as_ref()?.1)).collect();
        self.named.retain(|uid, _| uids.contains(&uid));
        for (port, behind) in &done.behind {
            let mut found = Vec::new();
            for behind in behind {
                found.extend(self.address(behind, warns).await);
            }
            // If a pod's port routes to this relay itself, its visitors would loop.
            let ours = &self.exposer.relay.addresses;
            let of_port = working.iter().filter(|asked| asked.request.port == *port);
            for (asked, pods) in of_port.filter_map(|asked| Some((asked, asked.pods.as_ref()?))) {
                let mut found = found.clone();
                let target_port = asked.target_port;
                found.retain(|pod| pod.address.port() != target_port || !ours.contains(&pod.address.ip()));
                pods.send_if_modified(|known| {
                    *known != found && {
                        *known = found;
                        true
                    }
                });
            }
        }
    }

    /// Returns the address of a pod. `None`: it has no port of that name, or the relay may not read it.
    async fn address(&mut self, behind: &Behind, warns: bool) -> Option<PodAddress> {
        let (pod, uid) = behind.pod.clone().unwrap_or_default();
        let port = match &behind.port {
            PodPort::Number(port) => *port,
            PodPort::Name(name) => {
                if !self.named.contains_key(&uid) {
                    let found = self.exposer.kube.get(Kind::Pod, &self.name.namespace, &pod).await;
                    if let Err(error) = &found
                        && warns
                    {
                        warn!(service = %self.name, pod, %error, "relay: cannot read a pod, and sends it nothing");
                    }
                    // The next step retries, if that may help.
                    if found.as_ref().is_err_and(KubeError::is_temporary) {
                        return None;
                    }
                    self.named.insert(uid.clone(), found.ok().flatten().map(|pod| named_ports(&pod)));
                }
                *self.named.get(&uid)?.as_ref()?.get(name)?
            }
        };
        Some(PodAddress { pod, address: SocketAddr::new(behind.address, port) })
    }

    async fn tell(&self, service: Option<&Value>, reason: Reason, message: &str) {
        if let Some(service) = service {
            events::write(&self.exposer.kube, &self.exposer.relay, service, reason, message).await;
        }
    }

    /// Handles a failure. Returns how long to wait before the next step.
    async fn failed(&mut self, failure: Failure, working: &[Arc<Asked>], next: Option<&Arc<Asked>>) -> Duration {
        if let Failure::Undone { ports, .. } = &failure {
            let reason = failure.to_string();
            warn!(service = %self.name, reason, "relay: a takeover was undone");
            for asked in working.iter().filter(|asked| ports.contains(&asked.request.port)) {
                self.in_effect.remove(&asked.part());
                self.exposer.end(asked, reason.clone());
            }
            let found = self.exposer.kube.get(Kind::Service, &self.name.namespace, &self.name.name).await;
            self.tell(found.ok().flatten().as_ref(), Reason::TakeoverUndone, &reason).await;
            return Duration::ZERO;
        }
        let in_time = failure.is_temporary() && next.is_some_and(|asked| asked.at.elapsed() < CLAIM_WITHIN);
        if let Some(asked) = next.filter(|_| !in_time) {
            self.exposer.end(asked, failure.to_string());
            return Duration::ZERO;
        }
        let text = failure.to_string();
        if next.is_none() && self.said.as_ref() != Some(&text) {
            warn!(service = %self.name, error = text, "relay: cannot update a Service yet");
            self.said = Some(text);
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }

    /// Waits for `pause`, or until the claims or the Service change.
    async fn wait(&mut self, pause: Duration) {
        self.look();
        let until = Instant::now() + pause;
        let changed = async {
            match &self.looks {
                Some(looks) => looks.changed.notified().await,
                None => std::future::pending().await,
            }
            sleep(SETTLING).await;
        };
        let draining = async {
            match self.exposer.drain.is_draining() {
                true => std::future::pending().await,
                false => self.exposer.drain.started().await,
            }
        };
        tokio::select! {
            // Never an error: the sender lives as long as the task.
            _ = self.claims.changed() => {}
            () = sleep_until(until) => {}
            () = changed => {}
            () = draining => {}
        }
    }

    /// Watches the Service and its endpoints as long as the Service routes to a laptop.
    fn look(&mut self) {
        match (self.in_effect.is_empty(), &self.looks) {
            (true, _) => self.looks = None,
            (false, Some(_)) => {}
            (false, None) => {
                let (changed, end) = (Arc::new(Notify::new()), CancellationToken::new());
                let name = &self.name.name;
                for (kind, selector) in [
                    (Kind::Service, format!("fieldSelector=metadata.name%3D{name}")),
                    (Kind::EndpointSlice, format!("labelSelector=kubernetes.io%2Fservice-name%3D{name}")),
                ] {
                    let (kube, namespace) = (self.exposer.kube.clone(), self.name.namespace.clone());
                    let (changed, end) = (changed.clone(), end.clone());
                    self.exposer.drain.spawn(async move {
                        let watching = async {
                            loop {
                                if let Ok(mut changes) = kube.changes(kind, &namespace, &selector).await {
                                    while changes.next().await.is_some() {
                                        changed.notify_one();
                                    }
                                }
                                // Without a watch, changes are noticed at each renewal of the Lease.
                                sleep(WATCH_PAUSE).await;
                            }
                        };
                        tokio::select! {
                            () = watching => {}
                            () = end.cancelled() => {}
                        }
                    });
                }
                self.looks = Some(Looks { changed, _end: end.drop_guard() });
            }
        }
    }
}
