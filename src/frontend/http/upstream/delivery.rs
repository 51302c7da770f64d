//! One request, from its first attempt to its answer.

use std::{
    ops::ControlFlow,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version,
    header::{AUTHORIZATION, CONNECTION, EXPECT, WWW_AUTHENTICATE},
};
use hyper::body::Body as _;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Answered, Owner, RequestError, Upstreams, Way,
    admission::{Answer, MORE_EACH},
    connect::{Opened, Unopened},
    message::{Failed, send_on},
    pool::{Key, Returning, Sender},
    refusal::{self, Refusal},
    retry::{Attempt, Attempts, Outcome},
};
use crate::{
    config::Scheme,
    frontend::{
        http::{
            body::{Body, Kept, LONGEST_KEPT},
            interim::Listener,
        },
        protocol::{Asks, Choice},
    },
    tunnel::{Endpoint, StreamFault},
    wire::sniff::{Protocol, Sniff},
};

/// How long a request waits for an answer before adit closes idle connections to the same target. A server that serves one
/// connection at a time accepts no other before that.
const ALONE: Duration = Duration::from_millis(100);

/// Like [`ALONE`], for a new connection with TLS, whose handshake takes several round trips.
const GREETING: Duration = Duration::from_millis(500);

/// Maximum number of protocol changes for one request.
const MOST_TURNS: usize = 3;

/// A request in progress, with its attempts so far.
pub struct Delivery<'a> {
    upstreams: &'a Arc<Upstreams>,
    way: &'a Way<'a>,
    endpoint: Arc<Endpoint>,
    head: Request<()>,
    body: Kept,
    /// Its method is idempotent (RFC 9110, section 9.2.2).
    is_idempotent: bool,
    /// Its body is short enough to be kept for a retry.
    is_short: bool,
    choice: Choice,
    /// The backend had answered in this protocol before the request.
    was_known: bool,
    /// Why the request has no answer in the protocol that the backend still speaks; another attempt is in another one.
    lost: Option<RequestError>,
    attempts: Attempts,
    turns: usize,
    retries: u32,
    /// Connection that was opened for the next attempt.
    ready: Option<Opened>,
    /// When the connection of the last attempt was ready.
    connected: Instant,
}

/// Next step after an attempt: another one, or the end.
type Next = ControlFlow<Result<Answered, RequestError>>;

impl<'a> Delivery<'a> {
    pub fn new(upstreams: &'a Arc<Upstreams>, way: &'a Way<'a>, request: Request<Body>) -> Self {
        let endpoint = way.lease.endpoint();
        let choice = upstreams.protocols.choose(way.route, &endpoint, way.asks);
        let is_short = request.body().is_end_stream()
            || request.body().size_hint().upper().is_some_and(|length| length <= LONGEST_KEPT as u64);
        let (head, body) = request.into_parts();
        let waits = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        let waits_for_100 = !body.is_end_stream() && head.headers.get(EXPECT).is_some_and(waits);
        Self {
            upstreams,
            way,
            endpoint,
            is_idempotent: head.method.is_idempotent(),
            is_short,
            head: Request::from_parts(head, ()),
            body: Kept::new(body, waits_for_100),
            was_known: choice.is_known,
            lost: None,
            choice,
            attempts: Attempts::default(),
            turns: 0,
            retries: 0,
            ready: None,
            connected: Instant::now(),
        }
    }

    /// Sends the request until there is an answer. A request on an open connection is the common case; everything else is boxed,
    /// so that a request takes 2 KiB and not 8.
    pub async fn deliver(mut self) -> Result<Answered, RequestError> {
        loop {
            let key = Key { is_http1: self.choice.is_http1, ..self.way.key(self.choice.scheme) };
            let opened = self.open(&key).await;
            self.connected = Instant::now();
            let next = match opened {
                Ok(opened) => self.attempt(key, opened).await,
                Err(unopened) => Box::pin(self.unopened(unopened)).await,
            };
            if let Next::Break(over) = next {
                return over.map_err(|error| if self.way.is_upgrade() { error.over_http1_alone() } else { error });
            }
        }
    }

    /// Returns a connection to send on. HTTP/2 connections are shared: they report the streams that the backend did not process.
    /// Over HTTP/1, only a repeatable request reuses a connection, which the backend may be closing. Others get a new one.
    async fn open(&mut self, key: &Key) -> Result<Opened, Unopened> {
        if let Some(ready) = self.ready.take() {
            return Ok(ready);
        }
        match self.take(key).await {
            Some(taken) => Ok(taken),
            None => Box::pin(self.connect(key)).await,
        }
    }

    /// Returns a reused connection.
    async fn take(&self, key: &Key) -> Option<Opened> {
        if !self.attempts.may_use_again() {
            return None;
        }
        let pool = &self.upstreams.pool;
        let owned = match self.way.owner.and_then(Owner::number) {
            Some(client) => pool.take_idle(&Key { client: Some(client), ..key.clone() }).await,
            None => None,
        };
        let taken = match owned {
            None if self.way.is_upgrade() => None,
            None => match pool.take_shared(key) {
                None if self.is_idempotent && self.is_short => pool.take_idle(key).await,
                shared => shared,
            },
            owned => owned,
        };
        let (sender, placement) = taken?;
        Some(Opened { sender, placement, was_used: true, is_after_close: false, admitted: None })
    }

    /// Returns a new connection, or one that becomes idle while the admission waits for other answers.
    async fn connect(&self, key: &Key) -> Result<Opened, Unopened> {
        let (backend, since) = (self.upstreams.admissions.of(&key.target, &self.endpoint), Instant::now());
        let admitted = loop {
            let changed = backend.changed();
            if let Some(admitted) = backend.admit(since) {
                break admitted;
            }
            let _ = timeout(MORE_EACH, changed).await;
            if let Some(taken) = self.take(key).await {
                return Ok(taken);
            }
        };
        let connecting = pin!(self.upstreams.connect(key, self.way, self.choice.is_known));
        // A single-threaded server sends no greeting before it serves the connection.
        let (opened, is_after_close) = self.beside_idle(key, GREETING, connecting).await;
        let opened = opened?;
        admitted.at(opened.placement.pod());
        Ok(Opened { is_after_close, admitted: Some(admitted), ..opened })
    }

    /// Handles a failed connection: nothing of the request was sent.
    async fn unopened(&mut self, Unopened { error, said }: Unopened) -> Next {
        let others = match said {
            None => &[][..],
            // Only an answer in another protocol proves a route's `scheme` wrong.
            Some(Sniff::Unknown | Sniff::NeedMore) if self.choice.is_fixed => &[],
            Some(said) => self.way.others(self.choice.scheme, said),
        };
        match self.turn(others).await {
            Some(turned) => self.send_in(turned, true),
            None => Next::Break(Err(error)),
        }
    }

    async fn attempt(&mut self, key: Key, mut opened: Opened) -> Next {
        let (was_used, is_h1) = (opened.was_used, matches!(opened.sender, Sender::H1(_)));
        let mut next = self.request(!self.choice.is_known && !was_used);
        let needs_connection = self.way.is_upgrade() || authenticates_connection(self.head.headers(), AUTHORIZATION);
        if is_h1 && !needs_connection && opened.admitted.as_ref().is_some_and(|admitted| admitted.asks_to_close) {
            next.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let sent = {
            let mut sending = pin!(send_on(&mut opened.sender, key.scheme, next));
            match was_used {
                true => sending.as_mut().await,
                false => {
                    let (sent, is_after_close) = self.beside_idle(&key, ALONE, sending.as_mut()).await;
                    opened.is_after_close |= is_after_close;
                    sent
                }
            }
        };
        match sent {
            Ok(response) if is_h1 && was_used && self.is_about_idling(&response) => {
                self.attempts.use_none_again();
                self.upstreams.metrics.retries.fetch_add(1, Ordering::Relaxed);
                self.retries += 1;
                Next::Continue(())
            }
            Ok(response) if is_h1 && key.scheme != Scheme::Https && response.status() == StatusCode::BAD_REQUEST => {
                Box::pin(self.refused(key, opened, response)).await
            }
            Ok(response) => self.answered(key, opened, response),
            Err(failed) => Box::pin(self.failed(&key, *failed, was_used)).await,
        }
    }

    fn answered(&self, mut key: Key, mut opened: Opened, response: Response<Body>) -> Next {
        if response.status().is_success() {
            // A backend may read the body while it answers.
            self.body.ask();
        }
        self.body.release();
        let unsent = self.body.refuse();
        if let Some(admitted) = opened.admitted.take() {
            let (is_kept, is_http2) = (is_kept(&response), matches!(opened.sender, Sender::H2(_)));
            let kept = admitted.answered(&Answer { is_kept, is_after_close: opened.is_after_close, is_http2 });
            if let Sender::H1(h1) = &mut opened.sender {
                h1.kept = kept;
            }
        }
        opened.sender.heard().know();
        if self.lost.is_none() {
            self.upstreams.protocols.learn(self.way.route, &self.endpoint, self.way.asks, key.scheme);
        }
        let (scheme, pod, retries) = (key.scheme, opened.placement.pod().clone(), self.retries);
        let mut is_kept = true;
        if let Sender::H1(h1) = &mut opened.sender {
            h1.is_authenticated |= authenticates_connection(self.head.headers(), AUTHORIZATION)
                || authenticates_connection(response.headers(), WWW_AUTHENTICATE);
            if h1.is_authenticated {
                key.client = self.way.owner.map(Owner::take);
                is_kept = key.client.is_some();
            }
        }
        let returning = match unsent {
            Some(unsent) => Some(Returning::unsent(unsent)),
            None if self.way.is_upgrade() || !is_kept => None,
            None => Some(self.upstreams.pool.returning(key, opened.sender, opened.placement)),
        };
        Next::Break(Ok(Answered { response, returning, scheme, pod, retries, connected: self.connected }))
    }

    /// Returns whether an answer on a reused connection is probably about the time before the request: some servers announce
    /// with a 408 that they close an idle connection, and the request may cross it. A client may repeat the request then, on
    /// another connection (RFC 9110, section 15.5.9).
    fn is_about_idling(&self, response: &Response<Body>) -> bool {
        let is_timeout = response.status() == StatusCode::REQUEST_TIMEOUT && !is_kept(response);
        is_timeout && self.head.method().is_safe() && self.body.is_whole()
    }

    /// Handles a 400 answer to HTTP/1 without TLS: the server may speak another protocol.
    async fn refused(&mut self, key: Key, opened: Opened, response: Response<Body>) -> Next {
        let may_ask = !self.choice.is_known && self.is_idempotent;
        let (response, refusal) = refusal::read(response, self.head.method(), may_ask).await;
        let wanted = refusal.map_or(&[][..], |refusal| refusal.wanted(self.way.asks));
        match self.turn(wanted).await {
            // A server that only closes does not say that it wants TLS.
            Some((_, Err(_))) if refusal == Some(Refusal::Closes) => self.answered(key, opened, response),
            Some(turned) => self.send_in(turned, true),
            None => self.answered(key, opened, response),
        }
    }

    async fn failed(&mut self, key: &Key, failed: Failed, was_used: bool) -> Next {
        if let Some(cause) = self.body.broken() {
            return Next::Break(Err(RequestError::Client(cause)));
        }
        // The tunnel has retried already, for as long as that helps.
        if failed.error.fault().is_some_and(StreamFault::never_reached_the_pod) {
            return Next::Break(Err(failed.error));
        }
        if failed.error.requires_http1() && self.way.asks != Asks::Grpc {
            return self.over_http1(key, failed.error).await;
        }
        if !failed.is_of_stream {
            // The cause has ended the other pooled connections, too.
            self.upstreams.pool.forget(key);
        }
        let is_silent = failed.said == Sniff::NeedMore;
        // A silent backend may have processed the request.
        let is_unread = !is_silent || self.is_idempotent;
        // A backend that takes this much in silence understands it. One that has answered before, too, may have died.
        let is_understood = !self.body.is_whole() || (self.was_known && !is_unread);
        // Over TLS nothing hints at another protocol. With a route's `scheme`, only the backend's answer does.
        let others = match key.scheme {
            Scheme::Https => &[][..],
            _ if was_used => &[],
            _ if is_silent && (self.choice.is_fixed || is_understood || failed.outcome != Outcome::Unanswered) => &[],
            scheme => self.way.others(scheme, failed.said),
        };
        let was_in_vain = self.upstreams.protocols.was_asked_in_vain(self.way.route, &self.endpoint);
        // A backend that has never answered gets one connection for each request until it is probed again.
        if is_silent && !others.is_empty() && !self.was_known && was_in_vain {
            return Next::Break(Err(failed.error));
        }
        let asks_first = !is_silent || !std::mem::replace(&mut self.choice.is_known, true);
        if asks_first && let Some(turned) = self.turn(others).await {
            return self.send_in(turned, is_unread);
        }
        let attempt = Attempt {
            outcome: failed.outcome,
            is_kept: self.body.is_whole(),
            is_idempotent: self.is_idempotent,
            was_used,
        };
        if let Some(pause) = self.attempts.again(attempt) {
            self.upstreams.metrics.retries.fetch_add(1, Ordering::Relaxed);
            self.retries += 1;
            sleep(pause).await;
            return Next::Continue(());
        }
        // The next pod may speak another protocol. A backend that fails often is not probed each time.
        match self.turn(if asks_first || was_in_vain { &[] } else { others }).await {
            Some(turned) => {
                if is_silent
                    && self.was_known
                    && self.upstreams.protocols.is_still_spoken(self.way.route, &self.endpoint)
                {
                    self.lost = Some(failed.error);
                }
                self.send_in(turned, is_unread)
            }
            None => {
                if is_silent && !others.is_empty() {
                    self.upstreams.protocols.asked_in_vain(self.way.route, &self.endpoint);
                }
                Next::Break(Err(self.lost.take().unwrap_or(failed.error)))
            }
        }
    }

    /// Sends the request by HTTP/1.1, as the backend requires: it has not processed it.
    async fn over_http1(&mut self, key: &Key, error: RequestError) -> Next {
        if key.scheme == Scheme::Https && !key.is_http1 {
            self.upstreams.protocols.require_http1(&self.way.route.target, &self.endpoint);
            self.choice.is_http1 = true;
            return if self.body.is_whole() { Next::Continue(()) } else { Next::Break(Err(error)) };
        }
        match self.turn(if key.scheme == Scheme::H2c { &[Scheme::Http] } else { &[] }).await {
            Some(turned) => self.send_in(turned, true),
            None => Next::Break(Err(error)),
        }
    }

    /// Connects in the first of `others` that the backend speaks. `None`: it speaks none of them. An error: it speaks TLS, but
    /// refuses this handshake, or adit refuses its certificate.
    async fn turn(&mut self, others: &[Scheme]) -> Option<(Scheme, Result<Opened, RequestError>)> {
        if others.is_empty() || self.turns == MOST_TURNS {
            return None;
        }
        self.turns += 1;
        for scheme in others {
            match self.upstreams.connect(&self.way.key(*scheme), self.way, false).await {
                Ok(opened) => return Some((*scheme, Ok(opened))),
                Err(Unopened { error: error @ RequestError::Tls(_), said: Some(Sniff::Is(Protocol::Tls)) }) => {
                    return Some((*scheme, Err(error)));
                }
                Err(_) => {}
            }
        }
        None
    }

    /// Sends the request in the protocol that the backend has turned out to speak. `is_unread`: the backend certainly did not
    /// process the bytes sent before.
    fn send_in(&mut self, (scheme, opened): (Scheme, Result<Opened, RequestError>), is_unread: bool) -> Next {
        let spoke = self.choice.scheme;
        if self.choice.is_fixed {
            return Next::Break(Err(RequestError::WrongScheme { spoke, speaks: scheme, is_fixed: true }));
        }
        let opened = match opened {
            Ok(opened) => opened,
            Err(refused) => {
                self.upstreams.protocols.learn(self.way.route, &self.endpoint, self.way.asks, scheme);
                return Next::Break(Err(refused));
            }
        };
        // HTTP/1 without TLS shows only in the answer.
        let is_known = scheme != Scheme::Http;
        if !is_unread || !self.body.is_whole() {
            if is_known {
                self.upstreams.protocols.learn(self.way.route, &self.endpoint, self.way.asks, scheme);
            }
            return Next::Break(Err(RequestError::WrongScheme { spoke, speaks: scheme, is_fixed: false }));
        }
        self.choice = Choice { scheme, is_fixed: false, is_known, is_http1: self.choice.is_http1 };
        self.ready = Some(opened);
        Next::Continue(())
    }

    fn request(&self, is_held: bool) -> Request<Body> {
        let mut request = Request::new(self.body.read(is_held));
        request.method_mut().clone_from(self.head.method());
        request.uri_mut().clone_from(self.head.uri());
        request.headers_mut().clone_from(self.head.headers());
        request.extensions_mut().clone_from(self.head.extensions());
        if self.body.is_unasked() {
            let (body, listener) = (self.body.another(), request.extensions_mut().remove::<Listener>());
            request.extensions_mut().insert(listener.unwrap_or_default().asking(move || body.ask()));
        }
        request
    }

    /// Waits for a new connection, or for an answer on it, and after each `patience` closes idle connections to the same target.
    /// Returns whether it closed any.
    async fn beside_idle<F: Future>(
        &self,
        key: &Key,
        patience: Duration,
        mut waiting: Pin<&mut F>,
    ) -> (F::Output, bool) {
        let mut is_after_close = false;
        loop {
            match timeout(patience, waiting.as_mut()).await {
                Ok(output) => return (output, is_after_close),
                // Connections in steady use are never idle for this long.
                Err(_) => is_after_close |= self.upstreams.pool.close_idle(&key.target, ALONE),
            }
        }
    }
}

/// Returns whether a header is about the authentication of a whole connection (RFC 4559, section 6).
fn authenticates_connection(headers: &HeaderMap, name: HeaderName) -> bool {
    let is_of_connection = |value: &HeaderValue| {
        let scheme = value.as_bytes().split(|byte| *byte == b' ').next().unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"ntlm") || scheme.eq_ignore_ascii_case(b"negotiate")
    };
    headers.get_all(name).iter().any(is_of_connection)
}

/// Returns whether the answer's connection takes another request (RFC 9112, section 9.3).
fn is_kept(response: &Response<Body>) -> bool {
    let has = |word: &str| {
        let values = response.headers().get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case(word))
    };
    if response.version() == Version::HTTP_10 { has("keep-alive") } else { !has("close") }
}
