//! Requests to the pod: on which connection, and what is done where one fails.

mod heard;
pub mod pool;
mod retry;

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderValue, Request, Response, Uri, Version,
    header::{CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING},
    uri::PathAndQuery,
};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Body as _, client::conn::http1, ext::on_informational};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tower::BoxError;

use self::{
    heard::{Broken, Heard, innermost},
    pool::{H1, Key, Pool, Returning, Sender},
    retry::{Attempt, Attempts, Outcome},
};
use super::{super::tls::backend::ClientConfigs, http2, interim::Listener};
use crate::{
    config::Scheme,
    drain::Drain,
    io::BoxedIo,
    metrics::Metrics,
    routing::Route,
    tunnel::{Lease, OpenError, Placement, StreamFault},
};

pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Returns a body that is here already; no bytes are an empty one.
pub fn body_of(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body of up to this size is kept, so that the request can be repeated.
const LONGEST_KEPT: u64 = 64 * 1024;

/// The most header lines of an answer.
const MOST_HEADERS: usize = 2_000;

/// How long a request waits for an answer before idle connections to the same target are closed. A server that serves one
/// connection at a time does not see the next one before that.
const ALONE: Duration = Duration::from_millis(100);

const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no response.
pub enum RequestError {
    Open(OpenError),
    Tls(io::Error),
    Http1(hyper::Error),
    Http2(h2::Error),
    /// The client did not send its body to the end; why.
    Client(String),
}

impl RequestError {
    /// Returns how the stream to the pod broke, if that is what happened.
    pub fn fault(&self) -> Option<&StreamFault> {
        let mut source: Option<&(dyn std::error::Error + 'static)> = match self {
            Self::Open(_) | Self::Client(_) => None,
            Self::Tls(error) => Some(error),
            Self::Http1(error) => Some(error),
            Self::Http2(error) => error.get_io().map(|error| error as _),
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
    pool: Arc<Pool>,
    tls: ClientConfigs,
    metrics: Arc<Metrics>,
    drain: Drain,
}

/// A request, and what is needed to send it again.
struct Repeatable {
    head: Request<()>,
    body: Bytes,
}

impl Repeatable {
    /// Takes a request that may be repeated (RFC 9110, section 9.2.2) and has no body, or one that can be kept; gives
    /// others back.
    async fn of(request: Request<Body>) -> Result<Result<Self, Request<Body>>, RequestError> {
        let is_short = request.body().is_end_stream()
            || request.body().size_hint().upper().is_some_and(|length| length <= LONGEST_KEPT);
        if !request.method().is_idempotent() || !is_short {
            return Ok(Err(request));
        }
        let (parts, body) = request.into_parts();
        let body = match body.is_end_stream() {
            true => Bytes::new(),
            false => body.collect().await.map_err(|error| RequestError::Client(innermost(&*error)))?.to_bytes(),
        };
        Ok(Ok(Self { head: Request::from_parts(parts, ()), body }))
    }

    fn request(&self) -> Request<Body> {
        let mut request = Request::new(body_of(self.body.clone()));
        request.method_mut().clone_from(self.head.method());
        request.uri_mut().clone_from(self.head.uri());
        request.headers_mut().clone_from(self.head.headers());
        request.extensions_mut().clone_from(self.head.extensions());
        request
    }
}

impl Upstreams {
    pub fn new(metrics: Arc<Metrics>, drain: Drain) -> Arc<Self> {
        let pool = Pool::new(drain.clone());
        Arc::new(Self { pool, tls: ClientConfigs::default(), metrics, drain })
    }

    /// Sends a request and returns the head of the response, with what has to be kept until its body has ended.
    ///
    /// What is sent again is the matter of [`retry`]. A request that may be repeated takes a connection that was used
    /// before; others get a connection of their own, so that they meet none that is just ending.
    pub async fn send(
        self: &Arc<Self>,
        route: &Route,
        scheme: Scheme,
        lease: &Lease,
        host: &str,
        request: Request<Body>,
        is_upgrade: bool,
    ) -> Result<(Response<Body>, Option<Returning>), RequestError> {
        let key = Key {
            target: route.target.clone(),
            scheme,
            tls: (scheme == Scheme::Https).then(|| {
                let tls = &route.options.tls;
                let of_jump = || route.target.pods()?.jump.as_ref().map(|jump| jump.host.clone());
                (tls.server_name.clone().or_else(of_jump).unwrap_or_else(|| host.to_owned()), tls.clone())
            }),
        };
        let (repeatable, mut once) = match is_upgrade {
            true => (None, Some(request)),
            false => match Repeatable::of(request).await? {
                Ok(repeatable) => (Some(repeatable), None),
                Err(request) => (None, Some(request)),
            },
        };
        let is_idempotent = repeatable.is_some();
        let broken = Broken::default();
        once = once.map(|request| request.map(|body| broken.watch(body)));
        let mut attempts = Attempts::default();
        loop {
            let Some(next) = once.take().or_else(|| repeatable.as_ref().map(Repeatable::request)) else {
                return Err(RequestError::Tls(io::ErrorKind::NotConnected.into()));
            };
            let may_share = repeatable.is_some() || (scheme == Scheme::H2c && !is_upgrade);
            let pooled = if may_share && attempts.may_use_again() { self.pool.take(&key).await } else { None };
            let was_used = pooled.is_some();
            let (mut sender, placement) = match pooled {
                Some(pooled) => pooled,
                None => self.connect(&key, lease, is_upgrade).await?,
            };
            let sending = send_on(&mut sender, scheme, next);
            let sent = match was_used {
                true => sending.await,
                false => self.beside_idle(&key, sending).await,
            };
            let failed = match sent {
                Ok(response) if is_upgrade => return Ok((response, None)),
                Ok(response) => return Ok((response, self.pool.returning(key, sender, placement))),
                Err(failed) => *failed,
            };
            if let Some(cause) = broken.cause() {
                return Err(RequestError::Client(cause));
            }
            // The tunnel has tried this for as long as it may help.
            if failed.error.fault().is_some_and(StreamFault::never_reached_the_pod) {
                return Err(failed.error);
            }
            if !failed.is_of_stream {
                // What ended one connection has ended the others like it.
                self.pool.forget(&key);
            }
            once = failed.unsent;
            let is_kept = once.is_some() || repeatable.is_some();
            match attempts.again(Attempt { outcome: failed.outcome, is_kept, is_idempotent, was_used }) {
                Some(pause) => {
                    self.metrics.retries.fetch_add(1, Ordering::Relaxed);
                    sleep(pause).await;
                }
                None => return Err(failed.error),
            }
        }
    }

    /// Waits for an answer on a new connection; while there is none, idle connections to the same target are closed.
    async fn beside_idle<F: Future>(&self, key: &Key, sending: F) -> F::Output {
        let mut sending = std::pin::pin!(sending);
        loop {
            match timeout(ALONE, sending.as_mut()).await {
                Ok(sent) => return sent,
                // Those in steady use are not idle for as long.
                Err(_) => self.pool.close_idle(&key.target, ALONE),
            }
        }
    }

    async fn connect(&self, key: &Key, lease: &Lease, is_upgrade: bool) -> Result<(Sender, Placement), RequestError> {
        let (stream, placement) = lease.connect_placed().await.map_err(RequestError::Open)?;
        let Some((name, tls)) = &key.tls else {
            // What speaks h2c takes HTTP/1.1 for an upgrade, or nothing does.
            let is_h2 = key.scheme == Scheme::H2c && !is_upgrade;
            return Ok((self.handshake(key, stream, &placement, is_h2).await?, placement));
        };
        let config = self.tls.config(tls, is_upgrade).map_err(RequestError::Tls)?;
        let name = ServerName::try_from(name.clone())
            .map_err(|error| RequestError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let stream = match timeout(TLS_TIMEOUT, TlsConnector::from(config).connect(name, stream)).await {
            Ok(connected) => connected.map_err(RequestError::Tls)?,
            Err(_) => return Err(RequestError::Tls(io::ErrorKind::TimedOut.into())),
        };
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let sender = self.handshake(key, Box::new(stream), &placement, is_h2).await?;
        Ok((sender, placement))
    }

    async fn handshake(
        &self,
        key: &Key,
        stream: BoxedIo,
        placement: &Placement,
        is_h2: bool,
    ) -> Result<Sender, RequestError> {
        if !is_h2 {
            let builder = &mut http1::Builder::new();
            let heard = Heard::default();
            // Browsers take both: many headers, and a space before the colon.
            let (sender, connection) = builder
                .preserve_header_case(true)
                .max_headers(MOST_HEADERS)
                .allow_spaces_after_header_name_in_responses(true)
                .handshake(TokioIo::new(heard.on(stream)))
                .await
                .map_err(RequestError::Http1)?;
            // What goes wrong on the connection is told to the request on it.
            self.drain.spawn(async move { drop(connection.with_upgrades().await) });
            return Ok(Sender::H1(H1 { sender, heard }));
        }
        let (sender, connection) = http2::client::handshake(stream).await.map_err(RequestError::Http2)?;
        self.drain.spawn(async move { drop(connection.await) });
        self.pool.share(key.clone(), sender.clone(), placement.clone());
        Ok(Sender::H2(sender))
    }
}

/// An attempt that failed.
struct Failed {
    error: RequestError,
    outcome: Outcome,
    /// The request, where it certainly did not leave.
    unsent: Option<Request<Body>>,
    /// The connection goes on.
    is_of_stream: bool,
}

async fn send_on(
    sender: &mut Sender,
    scheme: Scheme,
    mut request: Request<Body>,
) -> Result<Response<Body>, Box<Failed>> {
    match sender {
        Sender::H1(H1 { sender, heard }) => {
            to_http1(&mut request);
            if let Some(listener) = request.extensions_mut().remove::<Listener>() {
                on_informational(&mut request, move |response| listener.tell(response.status(), response.headers()));
            }
            heard.forget();
            let sent = sender.try_send_request(request).await.map_err(|mut error| {
                let unsent = error.take_message();
                let outcome = match (&unsent, heard.anything()) {
                    (Some(_), _) => Outcome::NotSent,
                    (None, false) => Outcome::Unanswered,
                    (None, true) => Outcome::Answered,
                };
                let error = RequestError::Http1(error.into_error());
                Box::new(Failed { error, outcome, unsent, is_of_stream: false })
            })?;
            Ok(sent.map(|body| body.map_err(BoxError::from).boxed_unsync()))
        }
        Sender::H2(sender) => {
            to_http2(&mut request, scheme);
            sender.send(request).await.map_err(|(error, unsent)| {
                let outcome = if unsent.is_some() { Outcome::NotSent } else { Outcome::of_http2(&error) };
                let is_of_stream = error.is_reset();
                Box::new(Failed { error: RequestError::Http2(error), outcome, unsent, is_of_stream })
            })
        }
    }
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
    let has_length = request.headers().contains_key(CONTENT_LENGTH) || request.body().size_hint().exact().is_some();
    if !request.body().is_end_stream() && !has_length {
        // hyper takes a GET or HEAD whose length is unknown for one without a body, unless this is said.
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
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
