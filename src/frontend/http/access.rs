//! One log line and one journal entry per request, written when its answer has ended. The tunnel is in use until then.

use std::{
    error::Error,
    io,
    pin::Pin,
    sync::{Arc, Mutex, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Version, header::CONTENT_TYPE};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tower::BoxError;
use tracing::info;

use super::{
    body::{Body, innermost},
    recorded::{self, Sent},
    upstream::pool::Returning,
};
use crate::{
    guard::normaliser::{Busy, Gate},
    journal::{
        Entry, Journal, Kind, Ongoing,
        entry::Client,
        exchange::{Exchange, Head, ReplayOf},
    },
    metrics::Metrics,
    routing::Route,
    tunnel::Lease,
};

/// Delay before a broken answer ends, so that the bytes before the break are sent: servers discard their buffer when a body
/// breaks.
const BREAKS_AFTER: Duration = Duration::from_millis(10);

/// How long a request runs until it gets a row before its end, and then the interval between updates of that row.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// Line of the access log, written on drop.
pub struct Access {
    /// `None`: [`Access::take`] has moved it to another owner.
    record: Option<Record>,
    started: Instant,
    metrics: Arc<Metrics>,
    journal: Arc<Journal>,
    version: Version,
    sent: Sent,
    /// The row that the request got while it waited for its answer: see [`Waiting`].
    row: Row,
    shown: Option<Instant>,
    pub status: StatusCode,
    pub error: Option<&'static str>,
}

/// Journal record of a request: written at its end, or while it runs.
enum Record {
    Kept(Entry),
    /// The answer is endless or slow: the entry is in the journal before its end.
    Ongoing(Ongoing),
}

type Row = Arc<Mutex<Option<Ongoing>>>;

/// A request that waits for its answer.
pub struct Waiting {
    row: Row,
    journal: Arc<Journal>,
    entry: Option<Entry>,
}

impl Waiting {
    /// Waits for the answer. After a second the request becomes a row: people look for the request that hangs.
    pub async fn answer<T>(self, mut answering: Pin<&mut impl Future<Output = T>>) -> T {
        tokio::select! {
            biased;
            answer = &mut answering => return answer,
            () = sleep(SHOWN_AFTER) => {}
        }
        if let Some(entry) = self.entry {
            *self.row.lock().expect("no panic while the lock is held") = Some(self.journal.begin(entry));
        }
        answering.await
    }
}

impl Access {
    /// `keeps`: the copy of the request that is kept to show and to replay it. `None`: nothing is kept.
    pub fn start<B>(
        request: &Request<B>,
        connection: u64,
        metrics: Arc<Metrics>,
        journal: Arc<Journal>,
        keeps: Option<Arc<Exchange>>,
    ) -> Self {
        let entry = Entry::new(Kind::Http).with_method(request.method()).with_path(request.uri().path());
        let replay_of = request.extensions().get::<ReplayOf>().map(|replay| replay.id);
        let exchange = keeps.map(Into::into);
        Self {
            record: Some(Record::Kept(Entry { connection, replay_of, exchange, ..entry })),
            started: Instant::now(),
            metrics,
            journal,
            version: request.version(),
            sent: Sent::default(),
            row: Row::default(),
            shown: None,
            // Status for a client that left before the answer, as in nginx.
            status: StatusCode::from_u16(499).expect("a status of three digits"),
            error: None,
        }
    }

    /// Returns whether the exchange is kept for the dashboard.
    pub fn is_kept(&mut self) -> bool {
        self.entry().is_some_and(|entry| entry.exchange.is_some())
    }

    /// Records the client.
    pub fn by(mut self, client: Option<Client>) -> Self {
        if let Some(entry) = self.entry() {
            entry.client = client;
        }
        self
    }

    fn entry(&mut self) -> Option<&mut Entry> {
        match &mut self.record {
            Some(Record::Kept(entry) | Record::Ongoing(Ongoing { entry, .. })) => Some(entry),
            None => None,
        }
    }

    /// Returns the value that makes the request a row if its answer takes long.
    pub fn waiting(&mut self) -> Waiting {
        let entry = self.entry().cloned();
        Waiting { row: self.row.clone(), journal: self.journal.clone(), entry }
    }

    fn is_row(&self) -> bool {
        self.row.lock().expect("no panic while the lock is held").is_some()
    }

    /// Makes the request a row, or updates its row.
    fn show(&mut self) {
        self.shown = Some(Instant::now());
        let sent = self.sent.load(Ordering::Relaxed);
        if let Some(entry) = self.entry() {
            entry.bytes_up = entry.bytes_up.max(sent);
        }
        let row = self.row.lock().expect("no panic while the lock is held").take();
        self.record = self.record.take().map(|record| match record {
            Record::Kept(entry) => {
                let mut row = row.unwrap_or_else(|| self.journal.begin(entry.clone()));
                row.change(|of| *of = Entry { id: of.id, took: None, ..entry });
                Record::Ongoing(row)
            }
            Record::Ongoing(mut row) => {
                row.change(|_| ());
                Record::Ongoing(row)
            }
        });
    }

    /// Records the requested name.
    pub fn host(&mut self, host: &str) {
        if let Some(Record::Kept(entry)) = self.record.take() {
            self.record = Some(Record::Kept(entry.with_host(host)));
        }
    }

    /// Records the route and its target, also for a request that is then refused.
    pub fn route(&mut self, route: &Route) {
        if let Some(entry) = self.entry() {
            let target = route.target.to_string();
            if let Some(exchange) = &entry.exchange {
                let _ = exchange.leads_to.set(target.as_str().into());
            }
            (entry.route, entry.tunnel) = (Some(route.name.clone()), Some(target.into()));
        }
    }

    /// Records that the request goes to a host of another network: removes the route and the target.
    pub fn elsewhere(&mut self) {
        if let Some(entry) = self.entry() {
            (entry.route, entry.tunnel) = (None, None);
        }
    }

    /// Records the tunnel, which is running.
    pub fn tunnel(&mut self, lease: &Lease) {
        let after = self.started.elapsed();
        if let Some(entry) = self.entry() {
            (entry.tunnel, entry.tunnel_after) = (Some(lease.id()), Some(after));
        }
    }

    /// Records the pod and the attempts. `retries`: how often the request was sent again; `connected`: when its connection was
    /// up.
    pub fn sent(&mut self, pod: &Arc<str>, retries: u32, connected: Instant) {
        let after = connected.saturating_duration_since(self.started);
        if let Some(entry) = self.entry() {
            (entry.pod, entry.retries, entry.connected_after) = (Some(pod.clone()), retries, Some(after));
        }
    }

    /// Records the head of the backend's answer.
    pub fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        let after = self.started.elapsed();
        self.status = status;
        let is =
            |kind: &str| headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(kind.as_bytes()));
        let kind = match () {
            () if status == StatusCode::SWITCHING_PROTOCOLS => Kind::WebSocket,
            () if is("text/event-stream") => Kind::EventStream,
            () if is("application/grpc") && self.version == Version::HTTP_2 => Kind::Grpc,
            () => Kind::Http,
        };
        if let Some(entry) = self.entry() {
            (entry.kind, entry.status, entry.first_byte) = (kind, Some(status.as_u16()), Some(after));
            if kind == Kind::Grpc {
                // A gRPC call that fails at once has its status in the headers.
                entry.grpc_status = grpc_status(headers);
            }
            if let Some(exchange) = &entry.exchange {
                let _ = exchange.response.set(Head::of(headers));
            }
        }
        if matches!(kind, Kind::EventStream | Kind::WebSocket) || self.is_row() {
            self.show();
        }
    }

    /// Counts the bytes of the request's body, and records both bodies if a person has turned that on.
    pub fn record(&mut self, request: Request<Body>) -> Request<Body> {
        let (recorder, sent) = (self.journal.recorder().clone(), self.sent.clone());
        let kept = match self.entry() {
            Some(Entry { route: Some(route), exchange: Some(exchange), .. }) => recorder.body(route).inspect(|kept| {
                // Not set before: each request is recorded once.
                let _ = exchange.request_body.set(kept.clone());
                let _ = recorder.body(route).map(|body| exchange.response_body.set(body));
            }),
            _ => None,
        };
        if request.body().is_end_stream() {
            kept.iter().for_each(|kept| kept.end());
            return request;
        }
        request.map(|inner| recorded::record(inner, sent, kept))
    }

    /// Counts the next bytes of the answer, and updates the row.
    fn received(&mut self, data: &[u8]) {
        if self.shown.unwrap_or(self.started).elapsed() >= SHOWN_AFTER {
            self.show();
        }
        let Some(entry) = self.entry() else { return };
        entry.bytes_down += data.len() as u64;
        if entry.kind == Kind::EventStream {
            // An event ends with an empty line. One whose two line feeds arrive apart is not counted.
            entry.messages += data.windows(2).filter(|pair| *pair == b"\n\n").count() as u64;
        }
        if let Some(body) = entry.exchange.as_ref().and_then(|exchange| exchange.response_body.get()) {
            body.add(data);
        }
    }

    /// Records that the answer's body is complete.
    fn ended(&mut self) {
        let exchange = self.entry().and_then(|entry| entry.exchange.as_ref());
        if let Some(body) = exchange.and_then(|exchange| exchange.response_body.get()) {
            body.end();
        }
    }

    /// Records the gRPC status in the trailers of the answer.
    fn trailers(&mut self, trailers: &HeaderMap) {
        let status = grpc_status(trailers);
        if let Some(entry) = self.entry().filter(|_| status.is_some()) {
            entry.grpc_status = status;
        }
    }

    /// Records the bytes of each direction after a protocol switch.
    pub fn moved(&mut self, up: u64, down: u64) {
        if let Some(entry) = self.entry() {
            (entry.bytes_up, entry.bytes_down) = (up, down);
        }
    }

    /// Records the number of WebSocket messages from the client, and from the backend.
    pub fn messages(&mut self, up: u64, down: u64) {
        if let Some(entry) = self.entry() {
            (entry.messages_up, entry.messages) = (up, down);
        }
    }

    /// Moves the line to a new owner, which writes it.
    pub fn take(&mut self) -> Self {
        Self {
            record: self.record.take(),
            metrics: self.metrics.clone(),
            journal: self.journal.clone(),
            sent: self.sent.clone(),
            row: self.row.clone(),
            ..*self
        }
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        let (status, error, took) = (self.status.as_u16(), self.error, self.started.elapsed());
        let sent = self.sent.load(Ordering::Relaxed);
        if self.is_row() && self.record.is_some() {
            self.show();
        }
        let Some(entry) = self.entry() else { return };
        (entry.status, entry.took) = (Some(status), Some(took));
        entry.bytes_up = entry.bytes_up.max(sent);
        if let Some(error) = error {
            entry.error = Some(error.into());
        }
        info!(
            target: "adit::access",
            connection = entry.connection,
            method = entry.method.as_ref().map(|method| method.as_str()),
            host = entry.host,
            path = entry.path,
            route = entry.route.as_deref(),
            status,
            error,
            bytes = entry.bytes_down,
            took = format_args!("{took:.1?}"),
            "request"
        );
        let (route, first_byte) = (entry.route.clone(), entry.first_byte);
        self.metrics.request(route.as_ref(), status, first_byte);
        if let Some(Record::Kept(entry)) = self.record.take() {
            self.journal.add(entry);
        }
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Body of a response that holds the lease and the connection until it has ended, and then writes the line.
pub struct Tracked {
    inner: Body,
    lease: Option<Lease>,
    returning: Option<Returning>,
    access: Option<Access>,
    busy: Option<Busy>,
    cuts: Option<Arc<Gate>>,
    /// How the body broke, and the delay until the client sees it.
    broken: Option<(BoxError, Pin<Box<Sleep>>)>,
}

impl Tracked {
    pub fn new(inner: Body, mut access: Access) -> Self {
        if inner.is_end_stream() {
            access.ended();
        }
        Self { inner, lease: None, returning: None, access: Some(access), busy: None, cuts: None, broken: None }
    }

    /// Keeps the client's connection busy until the body has ended.
    pub fn keeping(mut self, busy: Option<Busy>) -> Self {
        self.busy = busy;
        self
    }

    /// Resets the client's connection if the body breaks: an HTTP/1.0 client has no other sign of that.
    pub fn cutting(mut self, gate: Option<Arc<Gate>>) -> Self {
        self.cuts = gate;
        self
    }

    /// Keeps the lease until the body has ended, and then gives the connection back.
    pub fn holding(mut self, lease: Lease, returning: Option<Returning>) -> Self {
        (self.lease, self.returning) = (Some(lease), returning);
        self
    }
}

/// Returns how an answer broke off, for `adit status`.
fn broken(error: &BoxError) -> String {
    const CLOSED: &str = "the pod closed the connection within its answer";
    let mut next: Option<&(dyn Error + 'static)> = Some(&**error);
    while let Some(cause) = next {
        if cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_incomplete_message) {
            return CLOSED.to_owned();
        }
        if let Some(reason) = cause.downcast_ref::<h2::Error>().and_then(h2::Error::reason) {
            return format!("the pod ended its answer with {reason:?}");
        }
        // A tunnel's errors have other kinds, and messages of their own.
        match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::UnexpectedEof) => return CLOSED.to_owned(),
            Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
                return "the answer broke off: the pod's chunks are not valid HTTP".to_owned();
            }
            _ => {}
        }
        next = cause.source();
    }
    format!("the answer broke off: {}", innermost(&**error))
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.broken.is_none() {
            let polled = Pin::new(&mut this.inner).poll_frame(cx);
            match polled {
                Poll::Ready(Some(Err(error))) => {
                    if let (Some(lease), Some(access)) = (&this.lease, &mut this.access) {
                        lease.note_error(&broken(&error));
                        access.error = Some("broken");
                    }
                    this.broken = Some((error, Box::pin(sleep(BREAKS_AFTER))));
                }
                Poll::Ready(Some(Ok(ref frame))) => {
                    if let Some(access) = &mut this.access {
                        if let Some(data) = frame.data_ref() {
                            access.received(data);
                        } else if let Some(trailers) = frame.trailers_ref() {
                            access.trailers(trailers);
                        }
                        if this.inner.is_end_stream() {
                            access.ended();
                        }
                    }
                    return polled;
                }
                Poll::Ready(None) => {
                    this.access.iter_mut().for_each(Access::ended);
                    this.returning = None;
                    this.lease = None;
                    this.access = None;
                    this.busy = None;
                    return polled;
                }
                Poll::Pending => return polled,
            }
        }
        if let Some((_, leaves)) = &mut this.broken {
            ready!(leaves.as_mut().poll(cx));
        }
        if let Some(gate) = &this.cuts {
            gate.cut();
        }
        Poll::Ready(this.broken.take().map(|(error, _)| Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_breaks_off_is_told_without_the_words_of_libraries() {
        let io = |kind, words: &str| -> BoxError { io::Error::new(kind, words).into() };
        let closed = "the pod closed the connection within its answer";
        for (error, told) in [
            (io(io::ErrorKind::UnexpectedEof, "unexpected EOF during chunk size line"), closed),
            (
                io(io::ErrorKind::InvalidInput, "Invalid chunk size line"),
                "the answer broke off: the pod's chunks are not valid HTTP",
            ),
            (h2::Error::from(h2::Reason::PROTOCOL_ERROR).into(), "the pod ended its answer with PROTOCOL_ERROR"),
            (io(io::ErrorKind::ConnectionReset, "the pod is gone"), "the answer broke off: the pod is gone"),
        ] {
            assert_eq!(broken(&error), told);
        }
    }
}
