//! Connections to the pod, pooled.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, Uri, Version,
    header::{COOKIE, HOST},
    uri::PathAndQuery,
};
use http_body_util::{BodyExt, Empty, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body as _, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tower::BoxError;

use super::super::tls::backend::BackendTls;
use crate::{
    config::Scheme,
    drain::Drain,
    io::BoxedIo,
    routing::{Route, Target},
    tunnel::{Lease, OpenError, StreamFault},
};

pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// How long an unused connection is kept. Node.js closes after 5 s, the shortest of the common servers: a request
/// must not meet a connection that is just being closed.
const IDLE: Duration = Duration::from_secs(4);

/// How many unused connections to one pod are kept: each is a connection into the pod.
const MOST_IDLE: usize = 64;

/// Milliseconds between the attempts of a request that may be repeated; a pod that is replaced takes about a second to say so.
const PAUSES: [u64; 5] = [50, 100, 200, 400, 800];

const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// What connections are shared by.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    target: Target,
    pod: String,
    scheme: Scheme,
    server_name: Option<String>,
    verify: bool,
}

/// Why there is no response.
pub enum RequestError {
    Open(OpenError),
    Tls(io::Error),
    Failed(hyper::Error),
}

impl RequestError {
    /// Returns how the stream to the pod broke, if that is what happened.
    pub fn fault(&self) -> Option<&StreamFault> {
        let mut source: Option<&(dyn std::error::Error + 'static)> = match self {
            Self::Open(_) => None,
            Self::Tls(error) => Some(error),
            Self::Failed(error) => Some(error),
        };
        while let Some(error) = source {
            if let Some(fault) = error.downcast_ref::<io::Error>().and_then(StreamFault::of) {
                return Some(fault);
            }
            source = error.source();
        }
        None
    }
}

/// The connections of one HTTP frontend to all its backends.
pub struct Upstreams {
    idle: Mutex<HashMap<Key, Vec<Idle>>>,
    /// One connection per backend serves all requests.
    h2: Mutex<HashMap<Key, http2::SendRequest<Body>>>,
    next: Mutex<u64>,
    tls: BackendTls,
    drain: Drain,
}

/// An unused connection, and the number that its timer knows it by.
type Idle = (u64, http1::SendRequest<Body>);

enum Sender {
    H1(http1::SendRequest<Body>),
    H2(http2::SendRequest<Body>),
}

impl Upstreams {
    pub fn new(drain: Drain) -> Arc<Self> {
        Arc::new(Self {
            idle: Mutex::default(),
            h2: Mutex::default(),
            next: Mutex::default(),
            tls: BackendTls::default(),
            drain,
        })
    }

    /// Sends a request and returns the head of the response.
    ///
    /// What certainly did not leave is sent again, whatever its method. A request that may be repeated (RFC 9110,
    /// section 9.2.2) and has no body is sent again when its connection ended without a byte of an answer: a pod that
    /// is stopped ends its connections, and ours learns of it up to a second later. Others get a connection of their
    /// own, so that they meet none that is just ending; none of them is sent twice.
    pub async fn send(
        self: &Arc<Self>,
        route: &Route,
        scheme: Scheme,
        lease: &Lease,
        host: &str,
        mut request: Request<Body>,
        is_upgrade: bool,
    ) -> Result<Response<Incoming>, RequestError> {
        let is_repeatable = !is_upgrade && request.method().is_idempotent() && request.body().is_end_stream();
        let mut pauses = PAUSES.iter();
        loop {
            let key = self.key(route, scheme, lease, host);
            let copy = is_repeatable.then(|| head_of(&request));
            let pooled = if is_repeatable || scheme == Scheme::H2c { self.take(&key) } else { None };
            let is_pooled = pooled.is_some();
            let mut sender = match pooled {
                Some(sender) => sender,
                None => self.connect(&key, lease, is_upgrade).await?,
            };
            let (error, unsent) = match self.send_on(&mut sender, &key, request).await {
                Ok(response) => {
                    if !is_upgrade {
                        self.give_back(key, sender);
                    }
                    return Ok(response);
                }
                Err(failed) => failed,
            };
            let error = RequestError::Failed(error);
            // The tunnel has tried this for as long as it may help.
            if error.fault().is_some_and(StreamFault::never_reached_the_pod) {
                return Err(error);
            }
            // What ended one connection has ended the others like it.
            self.forget(&key);
            let again = unsent.filter(|_| is_pooled).or(copy);
            match (again, is_pooled, pauses.next()) {
                (Some(again), true, _) => request = again,
                (Some(again), false, Some(pause)) => {
                    sleep(Duration::from_millis(*pause)).await;
                    request = again;
                }
                _ => return Err(error),
            }
        }
    }

    fn key(&self, route: &Route, scheme: Scheme, lease: &Lease, host: &str) -> Key {
        Key {
            target: route.target.clone(),
            pod: lease.endpoint().pod.clone(),
            scheme,
            server_name: (scheme == Scheme::Https)
                .then(|| route.server_name.clone().unwrap_or_else(|| host.to_owned())),
            verify: route.verify,
        }
    }

    /// Drops the unused connections.
    fn forget(&self, key: &Key) {
        self.idle.lock().expect("no panic while the lock is held").remove(key);
        self.h2.lock().expect("no panic while the lock is held").remove(key);
    }

    async fn send_on(
        &self,
        sender: &mut Sender,
        key: &Key,
        mut request: Request<Body>,
    ) -> Result<Response<Incoming>, (hyper::Error, Option<Request<Body>>)> {
        match sender {
            Sender::H1(sender) => {
                to_http1(&mut request);
                sender
                    .try_send_request(request)
                    .await
                    .map_err(|mut error| (error.take_message(), error))
                    .map_err(|(message, error)| (error.into_error(), message))
            }
            Sender::H2(sender) => {
                to_http2(&mut request, key.scheme);
                sender
                    .try_send_request(request)
                    .await
                    .map_err(|mut error| (error.take_message(), error))
                    .map_err(|(message, error)| (error.into_error(), message))
            }
        }
    }

    fn take(&self, key: &Key) -> Option<Sender> {
        let mut h2 = self.h2.lock().expect("no panic while the lock is held");
        if let Some(sender) = h2.get(key) {
            if !sender.is_closed() {
                return Some(Sender::H2(sender.clone()));
            }
            h2.remove(key);
        }
        drop(h2);
        let mut idle = self.idle.lock().expect("no panic while the lock is held");
        let senders = idle.get_mut(key)?;
        // The last one used is the one most likely to be alive.
        let found = std::iter::from_fn(|| senders.pop()).map(|(_, sender)| sender).find(|sender| sender.is_ready());
        if senders.is_empty() {
            idle.remove(key);
        }
        found.map(Sender::H1)
    }

    /// Keeps a connection for the next request, once the response has been read to its end.
    fn give_back(self: &Arc<Self>, key: Key, sender: Sender) {
        let Sender::H1(mut sender) = sender else { return };
        let this = self.clone();
        self.drain.spawn(async move {
            // An error: the connection ends with this response, or its reader has gone.
            if sender.ready().await.is_err() || this.drain.is_draining() {
                return;
            }
            let id = {
                let mut next = this.next.lock().expect("no panic while the lock is held");
                *next += 1;
                *next
            };
            {
                let mut idle = this.idle.lock().expect("no panic while the lock is held");
                let senders = idle.entry(key.clone()).or_default();
                if senders.len() >= MOST_IDLE {
                    return;
                }
                senders.push((id, sender));
            }
            tokio::select! {
                () = sleep(IDLE) => {}
                () = this.drain.started() => {}
            }
            let mut idle = this.idle.lock().expect("no panic while the lock is held");
            if let Some(senders) = idle.get_mut(&key) {
                senders.retain(|(other, _)| *other != id);
                if senders.is_empty() {
                    idle.remove(&key);
                }
            }
        });
    }

    async fn connect(&self, key: &Key, lease: &Lease, is_upgrade: bool) -> Result<Sender, RequestError> {
        let stream = lease.connect().await.map_err(RequestError::Open)?;
        if key.scheme != Scheme::Https {
            return self.handshake(key, stream, key.scheme == Scheme::H2c).await;
        }
        let config = self.tls.config(key.verify, is_upgrade).map_err(RequestError::Tls)?;
        let name = key.server_name.clone().unwrap_or_default();
        let name = ServerName::try_from(name)
            .map_err(|error| RequestError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let stream = match timeout(TLS_TIMEOUT, TlsConnector::from(config).connect(name, stream)).await {
            Ok(connected) => connected.map_err(RequestError::Tls)?,
            Err(_) => return Err(RequestError::Tls(io::ErrorKind::TimedOut.into())),
        };
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        self.handshake(key, Box::new(stream), is_h2).await
    }

    async fn handshake(&self, key: &Key, stream: BoxedIo, is_h2: bool) -> Result<Sender, RequestError> {
        if !is_h2 {
            let builder = &mut http1::Builder::new();
            let (sender, connection) = builder
                .preserve_header_case(true)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(RequestError::Failed)?;
            // What goes wrong on the connection is told to the request on it.
            self.drain.spawn(async move { drop(connection.with_upgrades().await) });
            return Ok(Sender::H1(sender));
        }
        let mut builder = http2::Builder::new(TokioExecutor::new());
        // Downloads over a 50 ms way need a window of more than the default 64 KiB.
        builder.timer(TokioTimer::new()).adaptive_window(true).keep_alive_interval(Some(Duration::from_secs(20)));
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(RequestError::Failed)?;
        self.drain.spawn(async move { drop(connection.await) });
        self.h2.lock().expect("no panic while the lock is held").insert(key.clone(), sender.clone());
        Ok(Sender::H2(sender))
    }
}

/// Returns a request like this one, without its body.
fn head_of(request: &Request<Body>) -> Request<Body> {
    let empty = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    let mut copy = Request::new(empty);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    copy.extensions_mut().clone_from(request.extensions());
    copy
}

/// Origin-form, with the authority in Host (RFC 9112, section 3.2), and with one Cookie field: browsers split it over
/// HTTP/2 (RFC 9113, section 8.2.3), and servers of HTTP/1.1 read the first one.
fn to_http1(request: &mut Request<Body>) {
    if !request.headers().contains_key(HOST)
        && let Some(authority) = request.uri().authority()
        && let Ok(value) = authority.as_str().parse()
    {
        request.headers_mut().insert(HOST, value);
    }
    if request.headers().get_all(COOKIE).iter().nth(1).is_some() {
        let pairs: Vec<&[u8]> = request.headers().get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&pairs.join(&b"; "[..])) {
            request.headers_mut().insert(COOKIE, joined);
        }
    }
    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = origin_form(request.uri());
}

/// With scheme and authority, and without Host (RFC 9113, section 8.3.1).
fn to_http2(request: &mut Request<Body>, scheme: Scheme) {
    *request.version_mut() = Version::HTTP_2;
    let host = request.headers_mut().remove(HOST);
    let authority = host
        .and_then(|host| host.to_str().ok().map(str::to_owned))
        .or_else(|| request.uri().authority().map(|a| a.to_string()));
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(if scheme == Scheme::Https { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
    parts.authority = authority.and_then(|authority| authority.parse().ok());
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    if let Ok(uri) = Uri::from_parts(parts) {
        *request.uri_mut() = uri;
    }
}

fn origin_form(uri: &Uri) -> Uri {
    uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from)
}
