//! HTTP/2 connections to pods.
//!
//! adit sends no PINGs: the session below notices a dead tunnel, and gRPC servers close a connection with many PINGs.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use http::{Request, Response, header::CONTENT_LENGTH};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{task::AbortHandle, time::Instant};
use tower::BoxError;
use tracing::debug;

use super::{
    LONGEST_ANSWER_HEAD, Received, STREAM_WINDOW,
    empty_data::WithoutEmptyData,
    send_body,
    windows::{Driver, OF_CONNECTION, Pace, Windows},
};
use crate::{
    frontend::http::{body::Body, headers, interim::Listener},
    io::BoxedIo,
};

/// Sends requests on one connection; clones share it.
#[derive(Clone)]
pub struct Sender(SendRequest<Bytes>, Arc<Windows>);

/// Starts HTTP/2 on a connection; the returned future drives it to its end.
///
/// # Errors
/// The connection ended, or its peer does not speak HTTP/2.
pub async fn handshake(
    stream: BoxedIo,
) -> Result<(Sender, impl Future<Output = Result<(), h2::Error>> + Send), h2::Error> {
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(OF_CONNECTION)
        .max_header_list_size(LONGEST_ANSWER_HEAD)
        // The windows bound unread frames, however short: h2 would end the connection with all its streams.
        .data_frame_budget(usize::MAX)
        // A client that leaves resets its stream, and the pod's frames for it may still arrive. h2 remembers 50 such streams for
        // 1 s. Frames for others count as errors, and after 1,024 of them h2 would end the connection with all its streams.
        .max_local_error_reset_streams(None)
        .max_concurrent_reset_streams(1024)
        .reset_stream_duration(Duration::from_secs(30))
        .enable_push(false);
    let (sender, connection) = builder.handshake(WithoutEmptyData::new(stream, 0)).await?;
    let windows = Arc::<Windows>::default();
    Ok((Sender(sender, windows.clone()), Driver::new(connection, windows)))
}

impl Sender {
    /// Returns whether the connection accepts no more requests.
    pub fn is_closed(&mut self) -> bool {
        // A handle without a request in progress is always ready, unless the connection has failed.
        matches!(self.0.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }

    /// Returns the limit of concurrent streams: the backend's, or that of the memory for stalled readers.
    pub fn most_streams(&self) -> usize {
        self.0.current_max_send_streams().min(self.1.streams())
    }

    /// Sends a request; the error contains the request if it certainly was not sent.
    ///
    /// Interim responses go to the [`Listener`] in the request's extensions.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Body>, (h2::Error, Option<Request<Body>>)> {
        if let Err(error) = poll_fn(|cx| self.0.poll_ready(cx)).await {
            return Err((error, Some(request)));
        }
        let (mut parts, body) = request.into_parts();
        headers::remove_hop_by_hop(&mut parts.headers);
        let listener = parts.extensions.remove::<Listener>();
        let is_empty = body.is_end_stream();
        if let Some(length) = body.size_hint().exact().filter(|_| !is_empty) {
            parts.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        let started = Instant::now();
        let sent = self.0.send_request(Request::from_parts(parts, ()), is_empty);
        let (mut response, stream) = sent.map_err(|error| (error, None))?;
        let sending = (!is_empty).then(|| {
            let sending = tokio::spawn(async move {
                if let Err(error) = send_body(stream, body, false).await {
                    debug!(error, "request not sent to its end");
                }
            });
            Sending(Some(sending.abort_handle()))
        });
        let answered = poll_fn(|cx| poll_answer(&mut response, listener.as_ref(), cx)).await;
        let (parts, received) = answered.map_err(|error| (error, None))?.into_parts();
        let mut received = Received::new(received, &parts.headers);
        received.pace = Some(Pace::new(self.1.clone(), started.elapsed()));
        let body = match sending {
            Some(sending) => Answer::new(received, sending).boxed_unsync(),
            None => received.boxed_unsync(),
        };
        Ok(Response::from_parts(parts, body))
    }
}

fn poll_answer(
    response: &mut ResponseFuture,
    listener: Option<&Listener>,
    cx: &mut Context<'_>,
) -> Poll<Result<Response<h2::RecvStream>, h2::Error>> {
    // Poll for interim responses first: to wait for the final one makes h2 drop them.
    while let Some(interim) = ready!(response.poll_informational(cx)).transpose()? {
        if let Some(listener) = listener {
            listener.tell(interim.status(), interim.headers());
        }
    }
    Pin::new(response).poll(cx)
}

/// Stops sending a request's body on drop.
struct Sending(Option<AbortHandle>);

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// Body of an answer; a drop before its end cancels the request.
struct Answer {
    received: Received,
    sending: Sending,
}

impl Answer {
    fn new(received: Received, sending: Sending) -> Self {
        let mut answer = Self { received, sending };
        answer.note_end();
        answer
    }

    /// The pod's answer is complete, but the pod may still read the client's body.
    fn note_end(&mut self) {
        if self.received.is_end_stream() {
            self.sending.0 = None;
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.received).poll_frame(cx);
        self.note_end();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.received.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.received.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::stream;
    use http_body_util::StreamBody;
    use tokio::{io::duplex, time::timeout};

    use super::{super::poll_room, *};

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_request_ends_with_the_answer_that_nobody_wants() {
        let (near, far) = duplex(64 * 1024);
        let (mut sender, connection) = handshake(Box::new(near)).await.unwrap();
        tokio::spawn(connection);
        let pod = tokio::spawn(async move {
            let mut connection = h2::server::handshake(far).await.unwrap();
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            let _answer = respond.send_response(Response::new(()), false).unwrap();
            tokio::spawn(async move { while connection.accept().await.is_some() {} });
            request.into_body().data().await
        });
        let endless = stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let body = StreamBody::new(endless).map_err(|never| match never {}).boxed_unsync();
        let request = Request::post("http://web.localhost/").body(body).unwrap();
        let answer = sender.send(request).await.map_err(|(error, _)| error).unwrap();
        drop(answer);
        let read = timeout(PATIENCE, pod).await.expect("the pod is told").unwrap();
        assert!(read.expect("not the end of a whole body").is_err());
    }

    fn empty() -> Body {
        http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_reader_far_away_gets_a_wider_window() {
        let (near, far) = duplex(64 * 1024);
        let (mut sender, connection) = handshake(Box::new(near)).await.unwrap();
        tokio::spawn(connection);
        let pod = tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            let mut connection = builder.max_send_buffer_size(64 << 20).handshake(far).await.unwrap();
            let mut rooms = Vec::new();
            while let Some(accepted) = connection.accept().await {
                let (_, mut respond) = accepted.unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                stream.reserve_capacity(64 << 20);
                rooms.push(poll_fn(|cx| poll_room(&mut stream, cx)).await.unwrap());
                let sending = async {
                    for _ in 0..640 {
                        stream.reserve_capacity(8192);
                        poll_fn(|cx| poll_room(&mut stream, cx)).await.unwrap();
                        stream.send_data(vec![0; 8192].into(), false).unwrap();
                    }
                    stream.send_data(Bytes::new(), true).unwrap();
                };
                let driven = poll_fn(|cx| connection.poll_closed(cx));
                tokio::select! { () = sending => {}, _ = driven => {} }
            }
            rooms
        });
        for _ in 0..2 {
            let request = Request::get("http://web.localhost/").body(empty()).unwrap();
            let sent = timeout(PATIENCE, sender.send(request)).await.expect("an answer");
            let answer = sent.map_err(|(error, _)| error).unwrap();
            let body = timeout(PATIENCE, answer.into_body().collect()).await.expect("a whole body");
            assert_eq!(body.unwrap().to_bytes().len(), 640 * 8192);
        }
        drop(sender);
        let rooms = timeout(PATIENCE, pod).await.expect("the connection ends").unwrap();
        assert_eq!(rooms.len(), 2);
        assert!(rooms[0] <= STREAM_WINDOW as usize && rooms[1] > STREAM_WINDOW as usize, "{rooms:?}");
    }
}
