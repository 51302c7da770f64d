//! Requests of the forward proxy to hosts of another network, if the configuration allows them; each on its own connection.

use std::{convert::Infallible, time::Duration};

use http::{HeaderValue, Request, Response, header::HOST};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::oneshot,
    time::sleep,
};
use tower::BoxError;

use super::{
    HttpFrontend,
    body::{Body, holding, innermost},
    error_page::Page,
    exchange::Exchange,
    headers, pages,
    upstream::{connect::lenient, message::to_http1},
};
use crate::{
    drain::Drain,
    frontend::forward::{Asked, ForwardError, direct},
};

/// Timeout for the head of an answer, from the end of the request: the same as in browsers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

impl HttpFrontend {
    /// Sends a request to its host, and returns the answer for the client.
    pub(super) async fn direct(
        &self,
        mut request: Request<Body>,
        asked: &Asked,
        exchange: &mut Exchange,
    ) -> Result<Response<Body>, Page> {
        let stream = direct(asked).await.map_err(|error| match error {
            ForwardError::Direct { host, reason, is_timeout } => pages::undirected(&host, &reason, is_timeout),
            ForwardError::Route(error) => Page::of_route(&error),
            ForwardError::ReadOnly(_) => Page::new(http::StatusCode::FORBIDDEN, error.code(), error.to_string()),
            ForwardError::Open(route, error) => pages::unopened(&error, &asked.host, &route),
        })?;
        headers::remove_hop_by_hop(request.headers_mut());
        self.identity.mark(request.headers_mut());
        let host = format!("{}:{}", asked.host, asked.port);
        let response = match ask(stream, request, &exchange.arrival.drain).await {
            Some(Ok(response)) => response,
            Some(Err(error)) => return Err(pages::undirected(&host, &innermost(&error), false)),
            None => return Err(pages::undirected(&host, "it does not answer", true)),
        };
        exchange.access.answered(response.status(), response.headers());
        Ok(response.map(|body| exchange.track(body).boxed_unsync()))
    }
}

/// Sends a request, and returns the answer. `None`: the host does not answer in time.
async fn ask<S>(stream: S, request: Request<Body>, drain: &Drain) -> Option<hyper::Result<Response<Body>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sent_tx, sent) = oneshot::channel::<Infallible>();
    // Once the host has the whole request, hyper drops its body, and with it the sender.
    let request = request.map(|body| holding(body, sent_tx));
    tokio::select! {
        answered = send(stream, request, drain) => Some(answered),
        () = async { let _ = sent.await; sleep(ANSWER_TIMEOUT).await } => None,
    }
}

/// Sends a request for an absolute URL in the form that its host expects, and returns the answer as a proxy passes it on.
async fn send<S>(stream: S, mut request: Request<Body>, drain: &Drain) -> hyper::Result<Response<Body>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        // The target overrides the Host header (RFC 9112, section 3.2.2).
        request.headers_mut().insert(HOST, host);
    }
    to_http1(&mut request);
    let (mut sender, connection) = lenient().handshake::<_, Body>(TokioIo::new(stream)).await?;
    // `send_request` returns the errors of the connection, too.
    drain.spawn(async move { drop(connection.await) });
    let (mut parts, body) = sender.send_request(request).await?.into_parts();
    headers::of_answer(&mut parts);
    // hyper keeps the connection open until the body has been read.
    Ok(Response::from_parts(parts, body.map_err(BoxError::from).boxed_unsync()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{
        Version,
        header::{CONNECTION, UPGRADE},
    };
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        time::Instant,
    };

    use super::*;
    use crate::frontend::http::body::body_of;

    #[tokio::test]
    async fn a_host_gets_the_path_and_its_own_name_and_the_client_the_whole_answer() {
        let (near, mut far) = duplex(64 * 1024);
        let host = tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\nbody") {
                assert_ne!(far.read_buf(&mut head).await.unwrap(), 0, "{head:?}");
            }
            // As lenient as with pods.
            let many = format!("Server : old\r\n{}", "X-Many: v\r\n".repeat(150));
            let head_of_answer =
                "HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n";
            far.write_all(format!("{head_of_answer}{many}\r\n").as_bytes()).await.unwrap();
            for chunk in ["3\r\none\r\n", "5\r\n, two\r\n", "0\r\n\r\n"] {
                tokio::task::yield_now().await;
                far.write_all(chunk.as_bytes()).await.unwrap();
            }
            String::from_utf8(head).unwrap()
        });
        let request = Request::post("http://example.com:8080/a?b").header(HOST, "other").body(body_of("body"));
        let drain = Drain::new();
        let response = send(near, request.unwrap(), &drain).await.unwrap();
        assert_eq!((response.headers()["server"].as_bytes(), response.headers().len()), (&b"old"[..], 151));
        assert!(!response.headers().contains_key(UPGRADE) && !response.headers().contains_key(CONNECTION));
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "one, two");
        let head = host.await.unwrap().to_ascii_lowercase();
        assert!(head.starts_with("post /a?b http/1.1\r\n") && head.contains("host: example.com:8080\r\n"), "{head}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_without_a_length_arrives_and_may_take_its_time() {
        for method in ["GET", "HEAD", "POST"] {
            let (near, mut far) = duplex(64 * 1024);
            let host = tokio::spawn(async move {
                let mut sent = Vec::new();
                while !sent.ends_with(b"0\r\n\r\n") {
                    assert_ne!(far.read_buf(&mut sent).await.unwrap(), 0, "{}", sent.escape_ascii());
                }
                sleep(ANSWER_TIMEOUT - Duration::from_secs(1)).await;
                far.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                String::from_utf8(sent).unwrap()
            });
            let pieces = futures::stream::unfold(0, |sent| async move {
                sleep(Duration::from_secs(50)).await;
                (sent < 10).then(|| (Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x"))), sent + 1))
            });
            let request = Request::builder().method(method).uri("http://example.com/").version(Version::HTTP_2);
            let request = request.body(StreamBody::new(pieces).boxed_unsync()).unwrap();
            let drain = Drain::new();
            let answered = ask(near, request, &drain).await;
            assert_eq!(answered.expect("in time").unwrap().status(), 200, "{method}");
            let sent = host.await.unwrap();
            assert!(sent.matches("1\r\nx\r\n").count() == 10, "{method}: {sent}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_does_not_answer_is_waited_for_from_the_end_of_the_request() {
        let (near, _far) = duplex(64 * 1024);
        let request = Request::get("http://example.com/").body(body_of("")).unwrap();
        let began = Instant::now();
        assert!(ask(near, request, &Drain::new()).await.is_none());
        assert_eq!(began.elapsed().as_secs(), ANSWER_TIMEOUT.as_secs());
    }
}
