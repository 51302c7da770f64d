//! One reconcile step from the current state to the wanted state. It reads all objects first, so it may start from any
//! state that somebody has left. Each change applies only if the object is still as it was read.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Mutex,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    EXPOSED, Relay, ServiceName,
    endpoints::{self, Field},
    kube::{Kind, Kube, KubeError},
    lease::{self, Standing},
    pods::{self, Behind},
    service::{self, Change, Holder, Refusal, Takeover, has_selector},
    text,
};

/// How often a step restarts because somebody has changed an object meanwhile.
const TRIES: u32 = 8;

/// How long the relay's slices stay after the Service is restored, until the controller has put the pods behind the port
/// again. That takes some 100 ms, and longer in a busy cluster.
const PODS_WITHIN: Duration = Duration::from_secs(5);

/// How often the step checks for the pods in that time.
const LOOK_FOR_PODS: Duration = Duration::from_millis(100);

/// Holder in the Lease when a person restores a Service by hand.
pub const BY_HAND: &str = "adit/restore";

/// Reason for a client whose Service a person has restored.
pub const RESTORED_BY_HAND: &str = "was restored with 'adit expose restore'";

/// A port that is to be routed to a laptop.
#[derive(Clone, Debug)]
pub struct Want {
    pub holder: Holder,
    /// Port of the tunnel.
    pub target_port: u16,
    pub replaces: bool,
    /// The port was routed before. If somebody changes it now, the step does not repeat the takeover.
    pub is_held: bool,
}

impl Want {
    fn is_personal(&self) -> bool {
        !self.holder.personal.is_empty()
    }
}

/// State after a step.
#[derive(Debug, Default)]
pub struct Done {
    pub service: Option<Value>,
    /// Current record, if this relay has taken over the Service.
    pub takeover: Option<Takeover>,
    /// Pods behind each port that is taken over.
    pub behind: BTreeMap<u16, Vec<Behind>>,
}

impl From<Option<Value>> for Done {
    fn from(service: Option<Value>) -> Self {
        Self { service, ..Self::default() }
    }
}

/// Reasons why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("Service {service} is taken over by {owner} through the relay {relay}")]
    Busy { service: ServiceName, owner: String, relay: String },
    /// Somebody has undone the takeover.
    #[error("Service {service} {reason}")]
    Undone { service: ServiceName, ports: Vec<u16>, reason: String },
    #[error(transparent)]
    Kube(#[from] KubeError),
}

impl Failure {
    /// Returns whether a retry of the step may succeed.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Kube(error) if error.is_temporary())
    }

    /// Returns whether a change may have been made, or may still be made.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self, Self::Kube(error) if error.is_in_doubt())
    }
}

/// Leases of other relays, and when each was last seen to change. Measured with the local clock, because clocks may
/// differ.
#[derive(Default)]
pub struct Expiry {
    seen: Mutex<HashMap<ServiceName, (String, Instant)>>,
}

impl Expiry {
    fn is_expired(&self, name: &ServiceName, lease: &Value) -> bool {
        let version = text(&lease["metadata"]["resourceVersion"]);
        let seconds = lease["spec"]["leaseDurationSeconds"].as_u64().unwrap_or(lease::DURATION.as_secs());
        let mut seen = self.seen.lock().expect("no panic while the lock is held");
        let entry = seen.entry(name.clone()).or_insert_with(|| (version.to_owned(), Instant::now()));
        if entry.0 != version {
            *entry = (version.to_owned(), Instant::now());
        }
        entry.1.elapsed() > Duration::from_secs(seconds)
    }

    /// Removes all other Services.
    pub fn retain(&self, names: &BTreeSet<ServiceName>) {
        self.seen.lock().expect("no panic while the lock is held").retain(|name, _| names.contains(name));
    }
}

/// One step for one Service.
pub struct Step<'a> {
    pub kube: &'a Kube,
    pub relay: &'a Relay,
    pub name: &'a ServiceName,
    /// Empty: the Service is to be restored.
    pub wanted: &'a BTreeMap<u16, Want>,
    /// Record on the Service after the last step, in case somebody removes both records.
    pub known: Option<&'a Takeover>,
    /// Whether to renew the Lease.
    pub renews: bool,
    /// Whether to take the Lease from any holder.
    pub is_forced: bool,
    pub expiry: &'a Expiry,
}

/// The objects read in one step: a Service, its slices, its Endpoints and its Lease.
struct Scene {
    service: Option<Value>,
    slices: Vec<Value>,
    endpoints: Option<Value>,
    lease: Option<Value>,
}

impl Scene {
    fn has_selector(&self) -> bool {
        self.service.as_ref().is_some_and(has_selector)
    }

    /// Returns the endpoints that the step may change, with their kind.
    fn by_hand(&self) -> Vec<(Kind, Field, &Value)> {
        let has_selector = self.has_selector();
        let slices = self.slices.iter().map(|slice| (Kind::EndpointSlice, Field::Ports, slice));
        let endpoints = self.endpoints.iter().map(|endpoints| (Kind::Endpoints, Field::Subsets, endpoints));
        slices.chain(endpoints).filter(|(_, _, object)| endpoints::is_by_hand(object, has_selector)).collect()
    }

    fn is_untouched(&self) -> bool {
        let has_label = self.service.as_ref().is_some_and(|service| !service["metadata"]["labels"][EXPOSED].is_null());
        !has_label
            && !self.slices.iter().any(endpoints::is_ours)
            && !self.by_hand().iter().any(|(.., o)| endpoints::is_changed(o))
    }
}

impl Step<'_> {
    /// Runs the step.
    ///
    /// # Errors
    /// The Service cannot be taken over, or the API server refuses or cannot be reached.
    pub async fn run(&self) -> Result<Done, Failure> {
        let mut tries = 0;
        loop {
            match self.once().await {
                // Somebody else may delete what was read, too: a relay that gives the Service back, or a person who restores it.
                Err(Failure::Kube(KubeError::Conflict(_) | KubeError::NotFound(_))) if tries < TRIES => {
                    tries += 1;
                    sleep(Duration::from_millis(10) * tries).await;
                }
                done => return done,
            }
        }
    }

    /// Returns whether a relay has left a trace on the Service, its endpoints or its Lease.
    ///
    /// # Errors
    /// An object cannot be read.
    pub async fn is_touched(&self) -> Result<bool, KubeError> {
        let scene = self.read().await?;
        let kept = lease::takeover(scene.lease.as_ref());
        let taken = scene.service.as_ref().map(|service| service::takeover(service, self.name, kept.as_ref()));
        let has_lease = !matches!(lease::standing(scene.lease.as_ref(), ""), Standing::Free | Standing::Foreign);
        // A damaged annotation is a trace too.
        Ok(has_lease || !scene.is_untouched() || taken.is_some_and(|taken| !matches!(taken, Ok(None))))
    }

    async fn once(&self) -> Result<Done, Failure> {
        let scene = self.read().await?;
        let kept = lease::takeover(scene.lease.as_ref());
        let before = match &scene.service {
            Some(service) => service::takeover(service, self.name, kept.as_ref().or(self.known))?,
            None => None,
        };
        if let Some(relay) = self.other_relay(&scene, before.as_ref()).await? {
            return self.leave_to(&relay, before.as_ref(), scene.service).map(Done::from);
        }
        if self.wanted.is_empty() && before.is_none() && scene.is_untouched() {
            if scene.lease.is_some() {
                // The previous step was interrupted after its first change.
                let service = scene.service.iter().map(|service| (Kind::Service, service));
                for (kind, object) in scene.by_hand().into_iter().map(|(kind, _, object)| (kind, object)).chain(service)
                {
                    self.disown(kind, object.clone()).await?;
                }
            }
            self.release(scene.lease).await?;
            return Ok(scene.service.into());
        }
        self.check(&scene, before.as_ref())?;
        let after = (!self.wanted.is_empty()).then(|| self.plan(&scene, before.as_ref()));
        let lease = self.hold(scene.lease.clone(), scene.service.as_ref(), kept.as_ref(), after.as_ref()).await?;
        match &after {
            Some(after) => {
                let behind = self.behind(&scene, after);
                let service = self.take(scene, before.as_ref(), after).await?;
                Ok(Done { service: Some(service), takeover: Some(after.clone()), behind })
            }
            None => {
                let service = self.give_back(scene, before.as_ref()).await?;
                self.release(lease).await?;
                Ok(service.into())
            }
        }
    }

    async fn read(&self) -> Result<Scene, KubeError> {
        let (namespace, name) = (self.name.namespace.as_str(), self.name.name.as_str());
        let labels = format!("{}={name}", endpoints::SERVICE_NAME);
        let lease_name = lease::name(self.name);
        let (service, slices, lease) = tokio::join!(
            self.kube.get(Kind::Service, namespace, name),
            self.kube.list(Kind::EndpointSlice, Some(namespace), &labels),
            self.kube.get(Kind::Lease, namespace, &lease_name),
        );
        let (service, slices) = (service?, slices?);
        let lease = match lease {
            Err(KubeError::Forbidden(_)) if self.is_forced => None,
            lease => lease?,
        };
        // Endpoints of a Service with a selector belong to its controller. At the end they may still have our annotation,
        // because the selector may be new.
        let endpoints = match service.as_ref().map(has_selector) {
            Some(false) => self.kube.get(Kind::Endpoints, namespace, name).await?,
            Some(true) if self.wanted.is_empty() => {
                let found = self.kube.get(Kind::Endpoints, namespace, name).await;
                found.ok().flatten().filter(endpoints::is_changed)
            }
            Some(true) | None => None,
        };
        Ok(Scene { service, slices, endpoints, lease })
    }

    /// Returns the relay that has the Service, if it is another one and it is alive.
    async fn other_relay(&self, scene: &Scene, before: Option<&Takeover>) -> Result<Option<String>, Failure> {
        let us = self.relay.to_string();
        let holder = match lease::standing(scene.lease.as_ref(), &us) {
            Standing::Ours => return Ok(None),
            Standing::Foreign if self.wanted.is_empty() && before.is_none() && scene.is_untouched() => return Ok(None),
            Standing::Foreign => {
                let object = format!("Lease {}/{}", self.name.namespace, lease::name(self.name));
                return Err(Refusal::Foreign { object }.into());
            }
            Standing::Free => match before {
                Some(before) if before.relay != us => before.relay.clone(),
                _ => return Ok(None),
            },
            Standing::Other(holder) => holder,
        };
        let is_expired = scene.lease.as_ref().is_some_and(|lease| self.expiry.is_expired(self.name, lease));
        Ok((!self.is_forced && !is_expired && !self.is_gone(&holder).await).then_some(holder))
    }

    /// Returns whether a relay has certainly ended.
    async fn is_gone(&self, holder: &str) -> bool {
        let Some([namespace, pod, uid, start]) = Relay::parse(holder) else { return false };
        // A person who restores the Service by hand has no pod.
        if uid.is_empty() {
            return false;
        }
        if uid == self.relay.uid {
            return start != self.relay.start;
        }
        match self.kube.get(Kind::Pod, namespace, pod).await {
            Ok(None) => true,
            Ok(Some(found)) => {
                let phase = text(&found["status"]["phase"]);
                found["metadata"]["uid"] != uid || matches!(phase, "Succeeded" | "Failed")
            }
            // Unknown: the relay counts as alive until its Lease expires.
            Err(_) => false,
        }
    }

    fn leave_to(
        &self,
        relay: &str,
        before: Option<&Takeover>,
        service: Option<Value>,
    ) -> Result<Option<Value>, Failure> {
        let relay = Relay::shown(relay);
        let held: Vec<u16> = self.wanted.iter().filter(|(_, want)| want.is_held).map(|(port, _)| *port).collect();
        if !held.is_empty() {
            let reason = match relay == BY_HAND {
                true => RESTORED_BY_HAND.to_owned(),
                false => format!("was taken over by another relay, {relay}"),
            };
            return Err(Failure::Undone { service: self.name.clone(), ports: held, reason });
        }
        if self.wanted.is_empty() {
            return Ok(service);
        }
        let owners = before.iter().flat_map(|before| before.ports.iter().map(|taken| taken.owner.clone()));
        let owner = owners.collect::<Vec<_>>().join(", ");
        let owner = if owner.is_empty() { "somebody".to_owned() } else { owner };
        Err(Failure::Busy { service: self.name.clone(), owner, relay })
    }

    /// Checks, before any change, whether the step is allowed.
    fn check(&self, scene: &Scene, before: Option<&Takeover>) -> Result<(), Failure> {
        let mut undone: Vec<(u16, String)> = Vec::new();
        for (port, _) in self.wanted.iter().filter(|(_, want)| want.is_held) {
            let reason = match &scene.service {
                None => Some("was deleted".to_owned()),
                Some(service) => service::undone(service, before, self.known, *port),
            };
            undone.extend(reason.map(|reason| (*port, reason)));
        }
        if let Some((_, reason)) = undone.first() {
            let (reason, ports) = (reason.clone(), undone.iter().map(|(port, _)| *port).collect());
            return Err(Failure::Undone { service: self.name.clone(), ports, reason });
        }
        let is_personal = self.wanted.values().any(|want| want.is_personal() && !want.is_held);
        let Some(service) = &scene.service else {
            let is_missing = self.wanted.values().any(|want| want.replaces && !want.is_held);
            return match (is_personal, is_missing) {
                (true, _) => Err(Refusal::NoPods(self.name.clone()).into()),
                (false, true) => Err(Refusal::Missing(self.name.clone()).into()),
                (false, false) => Ok(()),
            };
        };
        if self.wanted.is_empty() {
            return Ok(());
        }
        if is_personal && before.is_some_and(|before| before.created) {
            return Err(Refusal::OnlyOurs(self.name.clone()).into());
        }
        if before.is_none_or(|before| !before.created) {
            let families = self.families();
            for (port, want) in self.wanted.iter().filter(|(_, want)| !want.is_held) {
                if !want.replaces {
                    return Err(Refusal::Exists(self.name.clone()).into());
                }
                service::check(service, self.name, *port, &families)?;
            }
        }
        let names = self.names(service);
        let by_hand = scene.by_hand();
        let kinds = |kind: Kind| if kind == Kind::Endpoints { "Endpoints" } else { "EndpointSlice" };
        let by_hand: Vec<_> = by_hand.into_iter().map(|(kind, field, object)| (kinds(kind), field, object)).collect();
        endpoints::check(self.name, &by_hand, &names)?;
        for own in endpoints::own_slices(self.name, service, self.relay, &BTreeMap::new()) {
            let same = |slice: &&Value| slice["metadata"]["name"] == own["metadata"]["name"];
            if scene.slices.iter().find(same).is_some_and(|slice| !endpoints::is_ours(slice)) {
                let object = format!("EndpointSlice {}/{}", self.name.namespace, text(&own["metadata"]["name"]));
                return Err(Refusal::Foreign { object }.into());
            }
        }
        Ok(())
    }

    fn families(&self) -> Vec<String> {
        self.relay.addresses.iter().map(|address| endpoints::family(address).to_owned()).collect()
    }

    fn holders(&self) -> BTreeMap<u16, Holder> {
        self.wanted.iter().map(|(port, want)| (*port, want.holder.clone())).collect()
    }

    fn plan(&self, scene: &Scene, before: Option<&Takeover>) -> Takeover {
        let (nothing, relay) = (Value::Null, self.relay.to_string());
        let service = scene.service.as_ref().unwrap_or(&nothing);
        let plan = service::plan(service, before, &relay, &self.holders());
        Takeover { created: plan.created || scene.service.is_none(), ..plan }
    }

    fn behind(&self, scene: &Scene, after: &Takeover) -> BTreeMap<u16, Vec<Behind>> {
        // A Service that a relay has created has no pods.
        let Some(service) = scene.service.as_ref().filter(|_| !after.created) else { return BTreeMap::new() };
        let ports = after.ports.iter();
        ports.map(|taken| (taken.port, pods::behind(service, &scene.slices, scene.endpoints.as_ref(), taken))).collect()
    }

    /// Returns the names of the wanted ports, as in endpoints.
    fn names(&self, service: &Value) -> BTreeSet<String> {
        service::taken_names(service, &self.holders(), false)
            .values()
            .map(|named| text(&named["name"]).to_owned())
            .collect()
    }

    /// Takes or renews the Lease, which records the planned state.
    async fn hold(
        &self,
        lease: Option<Value>,
        service: Option<&Value>,
        kept: Option<&Takeover>,
        after: Option<&Takeover>,
    ) -> Result<Option<Value>, Failure> {
        let us = self.relay.to_string();
        let held = match &lease {
            None => {
                let lease = lease::new(self.name, self.relay, service, after.or(kept));
                match self.kube.create(Kind::Lease, &self.name.namespace, &lease).await {
                    Err(KubeError::NotFound(_)) => return Err(Refusal::NoNamespace(self.name.namespace.clone()).into()),
                    created => created,
                }
            }
            Some(lease) => {
                let is_ours = lease::standing(Some(lease), &us) == Standing::Ours;
                if is_ours && !self.renews && (after.is_none() || after == kept) {
                    return Ok(Some(lease.clone()));
                }
                // The old record is needed to restore the Service, so this must happen before it is overwritten.
                self.kube.patch(Kind::Lease, lease, lease::renewed(lease, self.relay, after)).await
            }
        };
        match held {
            Err(KubeError::Forbidden(_)) if self.is_forced => Ok(None),
            held => Ok(Some(held?)),
        }
    }

    async fn take(&self, scene: Scene, before: Option<&Takeover>, after: &Takeover) -> Result<Value, Failure> {
        let namespace = self.name.namespace.as_str();
        let service = match &scene.service {
            Some(service) => service.clone(),
            None => {
                let service = service::create(self.name, self.owners(), after);
                self.kube.create(Kind::Service, namespace, &service).await?
            }
        };
        // The laptop's slices come first, next to the pods, so that there is always an endpoint behind the port.
        let named = service::taken_names(&service, &self.holders(), after.created);
        let target = |(port, want): (&u16, &Want)| Some((*port, (want.target_port, named.get(port)?.clone())));
        let ports = self.wanted.iter().filter_map(target).collect();
        let own = endpoints::own_slices(self.name, &service, self.relay, &ports);
        for slice in &own {
            self.ensure(slice, &scene.slices).await?;
        }
        let is_wanted = |slice: &&Value| own.iter().any(|own| own["metadata"]["name"] == slice["metadata"]["name"]);
        for slice in scene.slices.iter().filter(|slice| endpoints::is_ours(slice) && !is_wanted(slice)) {
            self.kube.delete(Kind::EndpointSlice, slice).await?;
        }
        let names = self.names(&service);
        for (kind, field, object) in scene.by_hand() {
            if let Some(patch) = endpoints::change(object, field, &names) {
                self.kube.patch(kind, object, patch).await?;
            }
        }
        match service::change(&service, before, Some(after)) {
            Change::Patch(patch) => Ok(self.kube.patch(Kind::Service, &service, patch).await?),
            Change::Nothing | Change::Delete => Ok(service),
        }
    }

    /// Creates a slice, or updates the existing one.
    async fn ensure(&self, slice: &Value, there: &[Value]) -> Result<(), KubeError> {
        let found = there.iter().find(|found| found["metadata"]["name"] == slice["metadata"]["name"]);
        match found {
            Some(found) if found["addressType"] != slice["addressType"] => {
                self.kube.delete(Kind::EndpointSlice, found).await?;
                self.kube.create(Kind::EndpointSlice, &self.name.namespace, slice).await.map(drop)
            }
            Some(found) if endpoints::covers(found, slice) => Ok(()),
            Some(found) => {
                let mut patch = json!({"endpoints": slice["endpoints"], "ports": slice["ports"]});
                for field in ["ownerReferences", "labels", "annotations"] {
                    patch["metadata"][field] = slice["metadata"][field].clone();
                }
                self.kube.patch(Kind::EndpointSlice, found, patch).await.map(drop)
            }
            None => self.kube.create(Kind::EndpointSlice, &self.name.namespace, slice).await.map(drop),
        }
    }

    async fn give_back(&self, scene: Scene, before: Option<&Takeover>) -> Result<Option<Value>, Failure> {
        let service = match &scene.service {
            None => None,
            Some(service) => match service::change(service, before, None) {
                Change::Nothing => Some(self.disown(Kind::Service, service.clone()).await?),
                Change::Patch(patch) => {
                    let service = self.kube.patch(Kind::Service, service, patch).await?;
                    Some(self.disown(Kind::Service, service).await?)
                }
                Change::Delete => {
                    self.kube.delete(Kind::Service, service).await?;
                    None
                }
            },
        };
        for (kind, field, object) in scene.by_hand() {
            let restored = match endpoints::change(object, field, &BTreeSet::new()) {
                Some(patch) => self.kube.patch(kind, object, patch).await?,
                None => object.clone(),
            };
            self.disown(kind, restored).await?;
        }
        if let (Some(service), Some(before)) =
            (&service, before.filter(|before| before.relay == self.relay.to_string()))
        {
            self.pods_are_back(service, before).await;
        }
        for slice in scene.slices.iter().filter(|slice| endpoints::is_ours(slice)) {
            self.kube.delete(Kind::EndpointSlice, slice).await?;
        }
        Ok(service)
    }

    /// Waits for a limited time until the pods are behind the ports again. The relay's slices stay until then, so that
    /// the port always has an endpoint.
    async fn pods_are_back(&self, service: &Value, before: &Takeover) {
        let names: BTreeSet<String> =
            before.ports.iter().map(|taken| service::port_name(service, taken.port)).collect();
        let labels = format!("{}={}", endpoints::SERVICE_NAME, self.name.name);
        let until = Instant::now() + PODS_WITHIN;
        while Instant::now() < until {
            match self.kube.list(Kind::EndpointSlice, Some(&self.name.namespace), &labels).await {
                Ok(slices) if !endpoints::lack(&slices, &names) => return,
                Ok(_) => sleep(LOOK_FOR_PODS).await,
                // On an error the slices are deleted anyway.
                Err(_) => return,
            }
        }
    }

    /// Removes adit from the owners of an object's fields. Otherwise a later server-side apply of such a field would fail
    /// with a conflict. The API server adds the writer of each change, so this needs a separate patch.
    async fn disown(&self, kind: Kind, object: Value) -> Result<Value, KubeError> {
        let Some(others) = service::disowned(&object) else { return Ok(object) };
        match self.kube.patch(kind, &object, json!({"metadata": {"managedFields": others}})).await {
            Err(KubeError::Conflict(call)) => Err(KubeError::Conflict(call)),
            // The object itself is already restored.
            done => Ok(done.unwrap_or(object)),
        }
    }

    /// Deletes the Lease, if a relay created it.
    async fn release(&self, lease: Option<Value>) -> Result<(), Failure> {
        let Some(lease) = lease else { return Ok(()) };
        if lease::standing(Some(&lease), "") == Standing::Foreign {
            return Ok(());
        }
        match self.kube.delete(Kind::Lease, &lease).await {
            Err(KubeError::Forbidden(_)) if self.is_forced => Ok(()),
            deleted => Ok(deleted?),
        }
    }

    /// Returns owner references: objects in the relay's own namespace are deleted with its pod.
    fn owners(&self) -> Value {
        match self.name.namespace == self.relay.namespace && !self.relay.uid.is_empty() {
            true => json!([{"apiVersion": "v1", "kind": "Pod", "name": self.relay.pod, "uid": self.relay.uid}]),
            false => json!([]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_has_expired_when_it_has_not_changed_for_its_duration() {
        let (expiry, name) = (Expiry::default(), ServiceName { namespace: "shop".into(), name: "web".into() });
        let is_expired = |version: &str| {
            let lease = json!({"metadata": {"resourceVersion": version}, "spec": {"leaseDurationSeconds": 30}});
            expiry.is_expired(&name, &lease)
        };
        for (version, wanted) in [("1", false), ("1", false), ("2", false), ("2", false), ("2", true)] {
            assert_eq!(is_expired(version), wanted, "{version}");
            tokio::time::advance(Duration::from_secs(20)).await;
        }
        expiry.retain(&BTreeSet::from([name.clone()]));
        assert!(is_expired("2"));
        expiry.retain(&BTreeSet::new());
        assert!(!is_expired("2"), "it is seen for the first time");
    }
}
