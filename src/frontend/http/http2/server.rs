//! HTTP/2 connections of clients.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{Builder, SendResponse},
};
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{CONTENT_LENGTH, DATE, EXPECT},
};
use http_body_util::BodyExt;
use hyper::body::Body as HttpBody;
use percent_encoding::{CONTROLS, utf8_percent_encode};
use tokio::{
    io::{copy, sink},
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tower::BoxError;
use tracing::debug;

use super::{
    LONGEST_HEAD, Received, STREAM_WINDOW, Tunnel,
    empty_data::WithoutEmptyData,
    flood::{PREFACE, Patient},
    is_grpc,
    keepalive::{self, Activity},
    request_body::{RequestBody, Rest},
    send_body, unfinished,
};
use crate::{
    drain::Drain,
    frontend::http::{
        body::{Body, body_of},
        error_page::BackendReset,
        headers,
        interim::ToClient,
    },
    io::{BoxedIo, accept::Limits},
};

/// Maximum number of concurrent streams of a connection; nginx allows 128, Envoy 100.
const MOST_STREAMS: u32 = 250;

/// How long adit reads on after the last answer of a connection.
const LINGER: Duration = Duration::from_secs(2);

/// Maximum number of interim responses to one request that wait to be sent; more are dropped.
const MOST_INTERIM: usize = 16;

/// Sends interim responses to the client.
#[derive(Clone)]
pub struct InterimSender(mpsc::Sender<Response<()>>);

impl InterimSender {
    pub fn send(&self, status: StatusCode, headers: HeaderMap) {
        let mut response = Response::new(());
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        // Fails if the request is answered, or if `MOST_INTERIM` responses wait.
        let _ = self.0.try_send(response);
    }
}

/// Yields the tunnel of an extended CONNECT after a 2xx answer; an extension of the request.
#[derive(Clone)]
pub struct Switching(Arc<Mutex<Option<oneshot::Receiver<Tunnel>>>>);

impl Switching {
    /// Returns the receiver of the tunnel. `None`: another caller has it.
    pub fn take(&self) -> Option<oneshot::Receiver<Tunnel>> {
        self.0.lock().expect("no panic while the lock is held").take()
    }
}

/// One request of a client.
struct Stream {
    respond: SendResponse<Bytes>,
    interim: mpsc::Receiver<Response<()>>,
    /// For a CONNECT: the client's data, the receiver of the tunnel, and the token that keeps the connection open.
    switching: Option<(RecvStream, oneshot::Sender<Tunnel>, TaskTrackerToken)>,
    /// Unread rest of the request's body; `None`: no body.
    rest: Option<Rest>,
    /// The request is a HEAD: its answer has no content.
    is_head: bool,
}

/// Serves a connection until it ends, or, in a drain, until its requests in progress are answered.
///
/// # Errors
/// The connection breaks, the client violates the protocol, sends no preface in time, or does not answer a PING.
pub async fn serve<F, A>(stream: BoxedIo, answer: F, limits: Limits, drain: Drain) -> Result<(), BoxError>
where
    F: Fn(Request<Body>) -> A,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let mut stream = Patient::new(stream);
    let activity = stream.activity();
    serve_streams(&mut stream, &activity, answer, &limits, drain).await?;
    // The client may still send window updates. To close with those unread would send an RST, which overtakes the end of an
    // answer.
    if let Some(answered) = activity.last_answer() {
        let _ = timeout_at(answered + LINGER, copy(&mut stream, &mut sink())).await;
    }
    Ok(())
}

async fn serve_streams<F, A>(
    stream: &mut Patient<BoxedIo>,
    activity: &Activity,
    answer: F,
    limits: &Limits,
    drain: Drain,
) -> Result<(), BoxError>
where
    F: Fn(Request<Body>) -> A,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(limits.window)
        .max_concurrent_streams(MOST_STREAMS)
        .max_header_list_size(LONGEST_HEAD)
        .data_frame_budget(limits.short_frames)
        .enable_connect_protocol();
    let stream = WithoutEmptyData::new(stream, PREFACE);
    let mut connection = tokio::select! {
        connection = timeout(limits.first_byte, builder.handshake(stream)) => {
            connection.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the preface of HTTP/2 did not come"))??
        }
        // A connection without its preface has nothing in progress.
        () = drain.started() => return Ok(()),
    };
    let pings = connection.ping_pong().expect("they are taken once");
    let mut gone = pin!(keepalive::until_gone(pings, activity.clone(), limits));
    // Closed, because only a closed tracker can be waited for; it accepts streams all the same.
    let streams = TaskTracker::new();
    streams.close();
    let mut is_closing = false;
    let mut idle_since = Instant::now();
    loop {
        let is_idle = streams.is_empty();
        let since = activity.last_answer().map_or(idle_since, |answer| answer.max(idle_since));
        let idle_until = since + if is_closing { LINGER } else { limits.idle };
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = drain.started(), if !is_closing => {
                connection.graceful_shutdown();
                (is_closing, idle_since) = (true, Instant::now());
                continue;
            }
            () = streams.wait(), if !is_idle => {
                idle_since = Instant::now();
                continue;
            }
            () = sleep_until(idle_until), if is_idle => {
                // The end of an answer may have been sent in the meantime.
                if activity.last_answer().is_some_and(|answer| answer > since) {
                    continue;
                }
                if is_closing {
                    return Ok(());
                }
                connection.graceful_shutdown();
                (is_closing, idle_since) = (true, Instant::now());
                continue;
            }
            () = gone.as_mut() => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not answer a PING").into());
            }
        };
        let Some(accepted) = accepted else { return Ok(()) };
        let (request, respond) = accepted?;
        let (request, stream) = Stream::of(request, respond, limits.body, streams.token());
        streams.spawn(stream.answer(Box::pin(answer(request))));
    }
}

/// Percent-encodes a target that is not ASCII, as [`http1::encode_target`](crate::wire::http1::encode_target) does.
fn encode_target(uri: &mut Uri) {
    let Some(target) = uri.path_and_query().filter(|target| !target.as_str().is_ascii()) else { return };
    let encoded = utf8_percent_encode(target.as_str(), CONTROLS).to_string();
    let mut parts = std::mem::take(uri).into_parts();
    // A target that became too long stays as it is, and is refused later.
    parts.path_and_query = encoded.parse().ok().or(parts.path_and_query);
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

impl Stream {
    /// `stall`: maximum time without a byte of the request's body.
    fn of(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        stall: Duration,
        open: TaskTrackerToken,
    ) -> (Request<Body>, Self) {
        let (interim_sender, interim) = mpsc::channel(MOST_INTERIM);
        let interim_sender = InterimSender(interim_sender);
        let (mut parts, received) = request.into_parts();
        encode_target(&mut parts.uri);
        let to_client = interim_sender.clone();
        parts.extensions.insert(ToClient::new(move |status, headers| to_client.send(status, headers)));
        let (mut switching, mut rest) = (None, None);
        let is_head = parts.method == Method::HEAD;
        let body = if parts.method == Method::CONNECT {
            let (sender, receiver) = oneshot::channel();
            parts.extensions.insert(Switching(Arc::new(Mutex::new(Some(receiver)))));
            switching = Some((received, sender, open));
            body_of("")
        } else if received.is_end_stream() {
            body_of("")
        } else {
            let is_expected = parts.headers.get(EXPECT).is_some_and(|what| what.as_bytes() == b"100-continue");
            let received = Received::new(received, &parts.headers);
            let (body, kept) = RequestBody::new(received, &parts.headers, stall, is_expected.then_some(interim_sender));
            rest = Some(kept);
            body.boxed_unsync()
        };
        (Request::from_parts(parts, body), Self { respond, interim, switching, rest, is_head })
    }

    /// `answering` is boxed: to move and pin it in here would take its memory twice.
    async fn answer(mut self, mut answering: Pin<Box<impl Future<Output = Response<Body>>>>) {
        // A client that has reset the stream wants no answer.
        let Some(response) = self.wait_for(answering.as_mut()).await else { return };
        drop(answering);
        if let Err(error) = self.send(response).await {
            return debug!(error, "HTTP/2 stream broken");
        }
        if let Some(rest) = self.rest {
            rest.read().await;
        }
    }

    /// Waits for the answer, and sends the interim responses before it. `None`: the client has reset the stream.
    async fn wait_for(
        &mut self,
        mut answering: Pin<&mut impl Future<Output = Response<Body>>>,
    ) -> Option<Response<Body>> {
        poll_fn(|cx| {
            self.poll_interim(cx);
            if let Poll::Ready(response) = answering.as_mut().poll(cx) {
                // More interim responses may have arrived in the meantime.
                self.poll_interim(cx);
                return Poll::Ready(Some(response));
            }
            self.respond.poll_reset(cx).map(|_| None)
        })
        .await
    }

    fn poll_interim(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(response)) = self.interim.poll_recv(cx) {
            if let Err(error) = self.respond.send_informational(response) {
                debug!(%error, "interim response not sent");
            }
        }
    }

    async fn send(&mut self, response: Response<Body>) -> Result<(), BoxError> {
        let (mut parts, body) = response.into_parts();
        if let Some(BackendReset(reason)) = parts.extensions.get() {
            self.respond.send_reset(unfinished(*reason));
            return Ok(());
        }
        let is_grpc = is_grpc(&parts.headers);
        // A route may add any header; h2 rejects those that HTTP/2 forbids.
        headers::remove_hop_by_hop(&mut parts.headers);
        if !parts.headers.contains_key(DATE)
            && let Ok(now) = HeaderValue::from_str(&httpdate::fmt_http_date(SystemTime::now()))
        {
            parts.headers.insert(DATE, now);
        }
        let switching = self.switching.take_if(|_| parts.status.is_success());
        let mut is_empty = switching.is_none() && body.is_end_stream();
        if let Some(length) = body.size_hint().exact().filter(|_| switching.is_none() && !is_empty) {
            parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        // Some backends send a body after HEAD, which h2 reports as an error: it must not replace the answer.
        is_empty |= self.is_head;
        let sending = match self.respond.send_response(Response::from_parts(parts, ()), is_empty) {
            Ok(sending) => sending,
            Err(error) => {
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                return Err(error.into());
            }
        };
        match switching {
            // If the receiver is gone, the dropped tunnel resets the stream.
            Some((receiving, waiting, open)) => drop(waiting.send(Tunnel::new(receiving, sending, open))),
            None if is_empty => {}
            None => send_body(sending, body, is_grpc).await?,
        }
        Ok(())
    }
}
