//! The task that reconciles the claims of one Service with the cluster.

use super::*;

/// The task of one Service.
pub(super) struct Following {
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

/// Returns a condition for the log, which leaves out a field that is `None`.
fn shown(condition: Option<&Condition>) -> Option<String> {
    condition.map(Condition::to_string)
}

impl Following {
    pub(super) fn new(exposer: Arc<Exposer>, name: ServiceName, claims: watch::Receiver<Claims>) -> Self {
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

    pub(super) async fn run(mut self) {
        loop {
            let claims = self.claims.borrow_and_update().clone();
            let is_draining = self.exposer.drain.is_draining();
            if is_draining {
                // On a drain, held claims end without a reason: their clients reconnect to another relay.
                for asked in claims.values() {
                    match asked.is_held() {
                        true => self.exposer.give_up(asked),
                        false => self.exposer.end(asked, ClaimOver::Undone("the relay is shutting down".to_owned())),
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
            self.wait(wait, is_draining).await;
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
            // After that long without a renewal, other relays may treat this one as dead and restore the Service.
            let silence = self.renewed.elapsed();
            let over = match silence > lease::DURATION {
                true => {
                    ClaimOver::Lost(format!("the API server did not answer for {} s, and {reason}", silence.as_secs()))
                }
                false => ClaimOver::Undone(reason.clone()),
            };
            warn!(service = %self.name, reason, renewed = ?silence, "relay: a takeover was undone");
            for asked in working.iter().filter(|asked| ports.contains(&asked.request.port)) {
                self.in_effect.remove(&asked.part());
                self.exposer.end(asked, over.clone());
            }
            if let ClaimOver::Lost(_) = over {
                return Duration::ZERO;
            }
            let found = self.exposer.kube.get(Kind::Service, &self.name.namespace, &self.name.name).await;
            self.tell(found.ok().flatten().as_ref(), Reason::TakeoverUndone, &reason).await;
            return Duration::ZERO;
        }
        let in_time = failure.is_temporary() && next.is_some_and(|asked| asked.at.elapsed() < CLAIM_WITHIN);
        if let Some(asked) = next.filter(|_| !in_time) {
            self.exposer.end(asked, ClaimOver::Undone(failure.to_string()));
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

    /// Waits for `pause`, or until the claims or the Service change, or a drain starts. `is_draining`: the last step knew of the
    /// drain. One that has started since then must not wait for the next renewal.
    async fn wait(&mut self, pause: Duration, is_draining: bool) {
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
            match is_draining {
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
