//! How a tunnel opens: what its client may have, the public port, name or Service, and the old tunnel of a client that returns.

use crate::random;

use super::*;

/// The Service's claim and part that the old tunnel of a returning client had. Dropping it gives back the claim, if no new one
/// has replaced it.
#[derive(Default)]
struct Before {
    /// The old tunnel, if it had a claim.
    old: Option<Arc<Tunnel>>,
    claim: Option<Claim>,
    shared: Option<Arc<SharedPort>>,
    /// Listener of the new tunnel.
    listener: Option<Arc<TcpListener>>,
}

impl Before {
    /// Drops the claim after a new one has replaced it.
    fn replaced(mut self) {
        drop(self.claim.take());
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        if let Some(old) = &self.old {
            let end = match self.claim.take() {
                Some(_) => ClaimEnd::GivenBack(self.listener.take()),
                None => ClaimEnd::Over,
            };
            old.end.send_replace(end);
        }
    }
}

impl Server {
    pub(in crate::relay::server) async fn open(
        self: &Arc<Self>,
        session: &Arc<Session>,
        wanted: &Wanted,
    ) -> Result<Arc<Tunnel>, TunnelError> {
        let Wanted { kind, port, name, resume, .. } = wanted;
        let (kind, port) = (*kind, *port);
        // Before the takeover: a client that may not have the tunnel now, or whose review fails, keeps its old one.
        let asked = self.exposed(session, kind, name).await?;
        let (name, host) = match name.split_once('=') {
            Some((name, host)) if kind == Kind::Http => {
                let known = host_header(host, None, 0);
                (name, Some(known.ok_or_else(|| TunnelError::Host(host.to_owned()))?))
            }
            _ => (name.as_str(), None),
        };
        let name = if kind == Kind::Http { self.checked_name(session, name)? } else { name.to_owned() };
        let mut before = self.take_over(session, wanted).await;
        self.check_quota(session, wanted.id)?;
        let entrance = match (kind, &asked) {
            (Kind::Http, _) => Entrance::Name(name),
            (_, Some(asked)) if asked.condition.is_some() => Entrance::Shared(match &before.shared {
                Some(shared) => shared.clone(),
                None => self.shared_port(session, asked)?,
            }),
            (_, Some(_)) => Entrance::Port(self.listen(session, 0, resume).await?),
            (_, None) => Entrance::Port(self.listen(session, port, resume).await?),
        };
        let (port, pods) = match &entrance {
            Entrance::Port((_, port)) => (*port, asked.as_ref().map(|_| Arc::new(Pods::new(Vec::new())))),
            Entrance::Shared(shared) => (shared.port, Some(shared.pods())),
            Entrance::Name(_) => (0, None),
        };
        if let Entrance::Port((listener, _)) = &entrance {
            before.listener = Some(listener.clone());
        }
        let claim = match &asked {
            Some(asked) => self.claim(asked, port, &pods, before.claim.as_ref()).await?,
            None => None,
        };
        before.replaced();
        // A Service that adit created has no pods.
        let pods = pods.filter(|_| asked.as_ref().is_some_and(|asked| asked.replaces));
        let back = claim.as_ref().map(Claim::back);
        let name = match (&entrance, &asked) {
            (Entrance::Name(name), _) => name.clone(),
            (_, Some(asked)) => asked.to_string(),
            (_, None) => String::new(),
        };
        let resume = random::bytes()?;
        let tunnel = self.register(session, &entrance, |number| {
            let condition = asked.as_ref().and_then(|asked| asked.condition.as_ref());
            let seat = match &entrance {
                Entrance::Shared(shared) => {
                    condition.zip(claim.as_ref()).map(|(condition, claim)| shared.sit(number, condition, claim.back()))
                }
                Entrance::Port(_) | Entrance::Name(_) => None,
            };
            let listener = match &entrance {
                Entrance::Port((listener, _)) if kind == Kind::Tcp => Some(listener.clone()),
                _ => None,
            };
            let limits = &self.options.limits;
            Tunnel {
                number,
                id: wanted.id,
                session: session.clone(),
                kind,
                port,
                name,
                host,
                exposed: asked,
                claim: Mutex::new(claim),
                end: watch::Sender::new(ClaimEnd::Open),
                seat: Mutex::new(seat),
                resume,
                streams: AtomicUsize::new(0),
                usage: Usage::default(),
                turns: Semaphore::new(limits.pending_per_tunnel),
                rate: Mutex::new((f64::from(limits.visitors_per_second), Instant::now())),
                listener: Mutex::new(listener),
                gone: CancellationToken::new(),
            }
        })?;
        // A Service has no public address.
        let public = Some(self.public_address(&tunnel)).filter(|address| !address.is_empty());
        info!(key = session.key.name, public, port = tunnel.port, "relay: tunnel open");
        match entrance {
            Entrance::Port((listener, _)) => {
                let passage = pods.map(|pods| Passage::new(self, tunnel.name.clone(), pods));
                self.drain.spawn(self.clone().serve_port(listener, tunnel.clone(), passage.zip(back)));
            }
            Entrance::Shared(_) => {}
            Entrance::Name(_) => self.tell_names(),
        }
        if tunnel.exposed.is_some() {
            self.drain.spawn(self.clone().watch_claim(tunnel.clone()));
        }
        Ok(tunnel)
    }

    /// # Errors
    /// Fails if the key has no room for another tunnel. `id`: the tunnel that is being opened.
    fn check_quota(&self, session: &Session, id: u32) -> Result<(), TunnelError> {
        let key = &session.key.name;
        let count = {
            let state = self.state();
            let others = state.opening.iter().filter(|(at, _)| **at != (session.token, id));
            let opening = others.filter(|(_, opening)| opening.key == *key).count();
            opening + state.tunnels.values().filter(|tunnel| tunnel.session.key.name == *key).count()
        };
        match count < self.options.limits.tunnels_per_key {
            true => Ok(()),
            false => Err(self.notices.used_up(Quota::Tunnels, &self.options.limits, key).into()),
        }
    }

    /// Takes over a Service, or creates it, for a port of the relay. `before`: the claim of the client's old tunnel.
    /// `None`: this relay takes over no Services.
    async fn claim(
        &self,
        asked: &ExposeRequest,
        port: u16,
        pods: &Option<Arc<Pods>>,
        before: Option<&Claim>,
    ) -> Result<Option<Claim>, TunnelError> {
        let Some(exposer) = &self.options.exposer else { return Ok(None) };
        let deadline = Instant::now() + TAKE_OVER;
        loop {
            match exposer.claim(asked.clone(), port, pods.clone(), before).await {
                // The tunnel that had the claim is closing.
                Err(error) if error.is_taken() && Instant::now() < deadline && !self.has_service(asked) => {
                    sleep(Duration::from_millis(20)).await;
                }
                claim => return Ok(Some(claim?)),
            }
        }
    }

    /// Adds the tunnel that `make` returns for a number, unless its client is gone or its name is in use.
    fn register(
        &self,
        session: &Session,
        entrance: &Entrance,
        make: impl FnOnce(u64) -> Tunnel,
    ) -> Result<Arc<Tunnel>, TunnelError> {
        let mut state = self.state();
        // If the client is gone, its session has already closed its tunnels, so nothing would ever close this one.
        if session.gone.is_cancelled() {
            return Err(TunnelError::ClientGone);
        }
        if let Entrance::Name(name) = entrance {
            if state.tunnels.values().any(|other| other.name == *name) {
                return Err(TunnelError::NameInUse(name.clone()));
            }
            state.reservations.end(&Public::Name(name.clone()));
        }
        state.next_tunnel += 1;
        let tunnel = Arc::new(make(state.next_tunnel));
        state.tunnels.insert(tunnel.number, tunnel.clone());
        // A key must not have more ports and names than `tunnels_per_key`, reserved ones included.
        let most = self.spare_tunnels(&state, &session.key.name);
        state.reservations.limit(&session.key.name, most);
        state.changed.send_replace(());
        Ok(tunnel)
    }

    /// Returns the relay port of a Service's port that is taken over in part: the existing one, or a new one.
    fn shared_port(self: &Arc<Self>, session: &Session, asked: &ExposeRequest) -> Result<Arc<SharedPort>, TunnelError> {
        let mut state = self.state();
        let State { shared, reservations, .. } = &mut *state;
        let of = (asked.service.clone(), asked.port);
        if let Some(shared) = shared.get(&of).and_then(Weak::upgrade) {
            return Ok(shared);
        }
        let (listener, port) = self.ports.open(&session.key, 0, &[0; 16], reservations)?;
        let name = format!("{}.{}:{}", asked.service.name, asked.service.namespace, asked.port);
        let opened = SharedPort::start(self, name, listener, port);
        shared.retain(|_, shared| shared.strong_count() > 0);
        shared.insert(of, Arc::downgrade(&opened));
        Ok(opened)
    }

    /// Records, before the next frame is read, that a tunnel to a Service is being opened. The returned token is
    /// cancelled when the client closes the tunnel meanwhile.
    ///
    /// # Errors
    /// It is already being opened, or the key is opening as many tunnels as it may have: each one is a task.
    pub(in crate::relay::server) fn begin_opening(
        &self,
        session: &Session,
        id: u32,
    ) -> Result<CancellationToken, TunnelError> {
        let (closed, key, limits) = (CancellationToken::new(), &session.key.name, &self.options.limits);
        let mut state = self.state();
        if state.opening.values().filter(|opening| opening.key == *key).count() >= limits.tunnels_per_key {
            return Err(self.notices.used_up(Quota::Tunnels, limits, key).into());
        }
        match state.opening.entry((session.token, id)) {
            Entry::Occupied(_) => Err(TunnelError::Opening),
            Entry::Vacant(free) => {
                free.insert(Opening { key: key.clone(), closed: closed.clone() });
                Ok(closed)
            }
        }
    }

    /// Opens a tunnel to a Service, and answers its client, unless the client closes the tunnel first or is gone.
    pub(in crate::relay::server) async fn open_service(
        self: &Arc<Self>,
        session: &Arc<Session>,
        wanted: Wanted,
        closed: CancellationToken,
    ) {
        let opened = tokio::select! {
            opened = self.open(session, &wanted) => opened,
            () = closed.cancelled() => Err(TunnelError::Closed),
            () = session.gone.cancelled() => Err(TunnelError::ClientGone),
        };
        let answer = self.answer(wanted.id, &opened);
        // Until there is room for the answer, the opening counts: the client may not read. If it is gone, it needs no answer.
        let room = session.frames.reserve().await;
        self.state().opening.remove(&(session.token, wanted.id));
        if let Ok(opened) = &opened
            && closed.is_cancelled()
        {
            self.close(opened, true);
        }
        if let Ok(room) = room {
            room.send(answer);
        }
    }

    /// Returns the reply to a client that requested a tunnel.
    pub(in crate::relay::server) fn answer(&self, id: u32, opened: &Result<Arc<Tunnel>, TunnelError>) -> Frame {
        match opened {
            Ok(opened) => {
                let address = self.public_address(opened);
                Frame::Opened { tunnel: id, port: opened.port, resume: opened.resume, address }
            }
            Err(error) => Frame::Refused { tunnel: id, reason: error.to_string() },
        }
    }

    /// Returns the Service's port that a client requests, if the client may have it.
    async fn exposed(&self, session: &Session, kind: Kind, name: &str) -> Result<Option<ExposeRequest>, TunnelError> {
        if !matches!(kind, Kind::Service | Kind::ReplacedService) {
            return Ok(None);
        }
        let exposer = self.options.exposer.as_ref().ok_or(TunnelError::NoServices)?;
        let (key, address) = (&session.key.name, session.peer.ip().to_canonical());
        let owner = match session.claimed.lock().expect("no panic while the lock is held").as_str() {
            "" => format!("{key} ({address})"),
            claimed => format!("{key} ({address}; claims to be {claimed})"),
        };
        let mut asked = ExposeRequest::parse(name, kind == Kind::ReplacedService, owner)?;
        let token = session.token_of_user.lock().expect("no panic while the lock is held").clone();
        let token = token.as_ref().map(|token| token.expose_secret());
        exposer.authorize(&session.key, token, &mut asked).await?;
        Ok(Some(asked))
    }

    /// Tells a client that somebody else has undone its takeover, and closes the tunnel. If the relay has lost it, the client
    /// reconnects, and claims it again.
    pub(super) async fn watch_claim(self: Arc<Self>, tunnel: Arc<Tunnel>) {
        let over = tunnel.claim().as_ref().map(Claim::over);
        let Some(over) = over else { return };
        tokio::select! {
            over = over => {
                let frame = match over {
                    ClaimOver::Undone(reason) => Frame::Refused { tunnel: tunnel.id, reason },
                    ClaimOver::Lost(reason) => Frame::Goodbye { reason },
                };
                // If the queue is full, the client does not read, and the heartbeat timeout ends its session.
                let _ = tunnel.session.frames.try_send(frame);
                self.close(&tunnel, true);
            }
            () = tunnel.gone.cancelled() => {}
        }
    }

    /// Closes the old tunnel of a returning client. The client proves it with the tunnel's resume token, or with the same
    /// key if the old client does not answer. Returns the old tunnel's parts of a Service: the Service stays taken over
    /// until the new tunnel has a claim, or until the result is dropped.
    async fn take_over(self: &Arc<Self>, session: &Session, wanted: &Wanted) -> Before {
        let Wanted { kind, port, name, resume, .. } = wanted;
        let (kind, port, resume) = (*kind, *port, *resume);
        let of_key = |tunnel: &&Arc<Tunnel>| tunnel.session.key.name == session.key.name;
        let same = |tunnel: &&Arc<Tunnel>| resume != [0; 16] && tunnel.resume == resume;
        let exposed = match kind {
            Kind::Tcp | Kind::Http => None,
            Kind::Service | Kind::ReplacedService => {
                ExposeRequest::parse(name, kind == Kind::ReplacedService, String::new()).ok()
            }
        };
        // An HTTP name may carry a Host header: NAME=HOST.
        let name = name.split('=').next().unwrap_or_default().to_ascii_lowercase();
        let same_public = |tunnel: &&Arc<Tunnel>| match (&exposed, &tunnel.exposed) {
            (Some(asked), Some(exposed)) => asked.is_same(exposed),
            (None, None) if kind == Kind::Tcp => tunnel.kind == Kind::Tcp && tunnel.port == port,
            (None, None) => kind == Kind::Http && tunnel.kind == Kind::Http && tunnel.name == name,
            _ => false,
        };
        let find = |wanted: &dyn Fn(&&Arc<Tunnel>) -> bool| {
            self.state().tunnels.values().filter(of_key).find(|tunnel| wanted(tunnel)).cloned()
        };
        let old = match find(&same) {
            Some(old) => old,
            None => {
                let old = find(&|tunnel| tunnel.session.token != session.token && same_public(tunnel));
                let Some(old) = old else { return Before::default() };
                if answers(&old.session).await {
                    return Before::default();
                }
                info!(peer = %old.session.peer, key = old.session.key.name, "relay: client does not answer, and is back");
                old
            }
        };
        let is_same = same_public(&&old);
        let shared = old.seat().as_ref().filter(|_| is_same).map(|seat| seat.shared().clone());
        let claim = old.claim().take();
        if claim.is_some() {
            old.end.send_replace(ClaimEnd::TakenOver);
        }
        self.close(&old, false);
        if old.session.token != session.token {
            // An old connection of the same client is not read any more. Another client must not believe that it still has it.
            let reason =
                format!("another client with the key {:?} has it now ({})", session.key.name, session.peer.ip());
            let _ = old.session.frames.try_send(Frame::Refused { tunnel: old.id, reason });
        }
        Before { old: claim.is_some().then_some(old), claim, shared, listener: None }
    }

    /// Listens on the port that the client had before, else on the requested port, else on any. A port without a tunnel
    /// may still be closing, so it is retried for a while.
    async fn listen(&self, session: &Session, port: u16, resume: &Token) -> Result<(Arc<TcpListener>, u16), PortError> {
        let deadline = Instant::now() + TAKE_OVER;
        loop {
            let opened = self.ports.open(&session.key, port, resume, &mut self.state().reservations);
            match opened {
                Err(PortError::Taken(port)) if Instant::now() < deadline && !self.has_port(port) => {
                    self.end_passing(|passing| passing == port);
                    sleep(Duration::from_millis(20)).await;
                }
                Err(PortError::NoneFree(_)) if Instant::now() < deadline => {
                    let ended = self.end_passing(|_| true);
                    if ended.is_empty() {
                        return opened;
                    }
                    // Their clients can have any port.
                    ended.into_iter().for_each(|port| self.state().reservations.end(&Public::Port(port)));
                    sleep(Duration::from_millis(20)).await;
                }
                opened => return opened,
            }
        }
    }

    /// Closes ports that only pass visitors to pods, because they are needed. Returns these ports.
    fn end_passing(&self, is_needed: impl Fn(u16) -> bool) -> Vec<u16> {
        let state = self.state();
        let needed = state.passing.iter().filter(|(port, _)| is_needed(**port));
        needed.inspect(|(_, over)| over.cancel()).map(|(port, _)| *port).collect()
    }

    fn has_service(&self, asked: &ExposeRequest) -> bool {
        let has = |exposed: &ExposeRequest| exposed.service == asked.service && exposed.port == asked.port;
        self.state().tunnels.values().any(|tunnel| tunnel.exposed.as_ref().is_some_and(has))
    }

    fn has_port(&self, port: u16) -> bool {
        self.state().tunnels.values().any(|tunnel| tunnel.has_port() && tunnel.port == port)
    }

    fn checked_name(&self, session: &Session, name: &str) -> Result<String, TunnelError> {
        if self.options.domain.is_none() {
            return Err(TunnelError::NoDomain);
        }
        let name = match name.is_empty() {
            true => {
                let random = random::bytes::<5>()?;
                random
                    .iter()
                    .map(|byte| char::from(b"abcdefghijkmnpqrstuvwxyz23456789"[usize::from(byte % 32)]))
                    .collect()
            }
            false => name.to_ascii_lowercase(),
        };
        if !is_label(&name) {
            return Err(TunnelError::NoLabel(name));
        }
        if !session.key.allows_name(&name) {
            return Err(TunnelError::NameNotAllowed(name));
        }
        self.state().reservations.check(&Public::Name(name.clone()), &session.key.name)?;
        Ok(name)
    }

    pub(super) fn public_address(&self, tunnel: &Tunnel) -> String {
        match (tunnel.kind, &self.options.domain) {
            (Kind::Service | Kind::ReplacedService, _) => tunnel.name.clone(),
            (Kind::Http, Some(domain)) => {
                let PublicOrigin { is_https, port } = self.options.http_public;
                let scheme = if is_https { "https" } else { "http" };
                let port = port.map_or(String::new(), |port| format!(":{port}"));
                format!("{scheme}://{}.{domain}{port}", tunnel.name)
            }
            _ => String::new(),
        }
    }
}
