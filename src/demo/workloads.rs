//! Servers in the demo's pods: tasks of this process, on streams in memory.

use std::{convert::Infallible, io, time::Duration};

use bytes::{Bytes, BytesMut};
use data_encoding::HEXLOWER;
use futures::StreamExt;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::sleep,
};
use tokio_rustls::TlsAcceptor;

use super::{database, process::Process};
use crate::wire::websocket::{Event, Opcode, Parser, Role, accept_key, put_frame};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Bytes of a pipe, like a socket buffer: a slow reader stops the writer.
pub const PIPE: usize = 64 * 1024;

/// Maximum bytes of a download.
const LARGEST_DOWNLOAD: u64 = 1 << 40;

/// Serves a new connection to a port of a running container.
pub fn accept(process: Process, site: &TlsAcceptor, port: u16, stream: DuplexStream) {
    let (tasks, pod) = (process.tasks.clone(), process.sandbox.name.clone());
    process.say(&format!("connection to port {port}"));
    match port {
        8080 => tasks.spawn(serve_http1(stream, process, false)),
        8081 => tasks.spawn(serve_h2c(stream, process)),
        8443 => {
            let site = site.clone();
            tasks.spawn(async move {
                if let Ok(stream) = site.accept(stream).await {
                    serve_http1(stream, process, true).await;
                }
            });
        }
        7001 => tasks.spawn(greet(stream, pod)),
        5432 => tasks.spawn(database::serve(stream, process)),
        _ => tasks.spawn(echo(stream)),
    }
}

async fn serve_http1<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    process: Process,
    tls: bool,
) {
    let service = service_fn(move |request| answer(request, process.clone(), tls));
    // An error means that the client has gone.
    let _ =
        http1::Builder::new().half_close(true).serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

async fn serve_h2c(stream: DuplexStream, process: Process) {
    let tasks = process.tasks.clone();
    let service = service_fn(move |request| answer(request, process.clone(), false));
    let _ = http2::Builder::new(tasks).serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(mut request: Request<Incoming>, process: Process, tls: bool) -> Result<Response<Body>, Infallible> {
    let pod = process.sandbox.name.clone();
    process.say(&format!("{} {}", request.method(), request.uri()));
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    Ok(match path.as_str() {
        "/" => whole("text/html; charset=utf-8", page(&request, &pod, tls)),
        "/whoami" => whole("text/plain", format!("{pod}\n")),
        "/headers" => {
            let headers: Vec<_> = request
                .headers()
                .iter()
                .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
                .collect();
            let shown = serde_json::json!({"method": request.method().as_str(), "version": format!("{:?}", request.version()), "tls": tls, "pod": pod, "headers": headers});
            whole("application/json", format!("{shown:#}\n"))
        }
        "/ws" => websocket(&mut request, &process),
        "/sse" => streamed(
            "text/event-stream",
            futures::stream::unfold(0u32, |count| async move {
                if count > 0 {
                    sleep(Duration::from_secs(1)).await;
                }
                Some((Bytes::from(format!("data: {count}\n\n")), count + 1))
            }),
        ),
        "/download" => {
            let total = query
                .strip_prefix("bytes=")
                .and_then(|bytes| bytes.parse::<u64>().ok())
                .unwrap_or(1 << 20)
                .min(LARGEST_DOWNLOAD);
            streamed(
                "application/octet-stream",
                futures::stream::unfold(total, |left| async move {
                    let length = left.min(PIPE as u64) as usize;
                    (length > 0).then(|| (Bytes::from(vec![b'a'; length]), left - length as u64))
                }),
            )
        }
        "/upload" => upload(request.into_body()).await,
        "/redirect" => {
            let mut response = whole("text/plain", String::new());
            *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
            if let Some(to) = query.strip_prefix("to=").and_then(|to| HeaderValue::try_from(to).ok()) {
                response.headers_mut().insert(header::LOCATION, to);
            }
            response
        }
        "/slow" => {
            sleep(Duration::from_secs(2)).await;
            whole("text/plain", "slow\n".to_owned())
        }
        path => match path
            .strip_prefix("/status/")
            .and_then(|code| code.parse::<u16>().ok())
            .and_then(|code| StatusCode::from_u16(code).ok())
        {
            Some(status) if status.as_u16() >= 200 => {
                let mut response = whole("text/plain", String::new());
                *response.status_mut() = status;
                response
            }
            _ => {
                let mut response = whole("text/plain", "there is nothing here\n".to_owned());
                *response.status_mut() = StatusCode::NOT_FOUND;
                response
            }
        },
    })
}

fn whole(kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn streamed(kind: &'static str, pieces: impl futures::Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let body = StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece))));
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Returns the page with which a pod describes itself.
fn page(request: &Request<Incoming>, pod: &str, tls: bool) -> String {
    let header = |name: &str| {
        request.headers().get(name).map(|value| escape(&String::from_utf8_lossy(value.as_bytes()))).unwrap_or_default()
    };
    let host = header("host");
    let port = host.rsplit_once(':').map(|(_, port)| format!(":{port}")).unwrap_or_default();
    let link = |name: &str, what: &str| {
        format!("<li><a href=\"http://{name}.localhost{port}/\">{name}.localhost</a> &mdash; {what}</li>")
    };
    let links = [
        link("web.shop", "two pods, one port"),
        link("tools.shop", "several ports: this one is the one a browser means"),
        link("443.tools.shop", "an https backend"),
        link("81.tools.shop", "an h2c backend"),
        link("queue.shop", "several ports, none of them obvious"),
        link("broken.shop", "no pod is ready"),
        link("payments.shop", "an ExternalName"),
        link("legacy.shop", "no selector"),
    ]
    .concat();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>{pod}</title>\
         <style>html{{color-scheme:light dark;font:16px/1.5 system-ui}}body{{max-width:44rem;margin:0 auto;padding:6vh 1rem}}code{{font-size:.9em}}</style>\
         <h1>You are looking at pod <code>{pod}</code></h1>\
         <p>Your browser asked adit for <code>{host}</code>. adit found the Service, chose this pod because it is ready, opened a port-forward to it \
         through the API server, and sent your request through it{}. The pod sees you as <code>{}</code>.</p>\
         <h2>More names</h2><ul>{links}</ul><h2>Paths</h2><p><a href=\"/headers\">/headers</a> <a href=\"/sse\">/sse</a> <a href=\"/slow\">/slow</a> \
         <a href=\"/download?bytes=104857600\">/download?bytes=104857600</a> <a href=\"/status/418\">/status/418</a> and a WebSocket at /ws</p></html>\n",
        if tls { ", over TLS" } else { "" },
        header("forwarded"),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

async fn upload(mut body: Incoming) -> Response<Body> {
    let (mut hash, mut count) = (Sha256::new(), 0u64);
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { break };
        if let Some(data) = frame.data_ref() {
            hash.update(data);
            count += data.len() as u64;
        }
    }
    let digest = HEXLOWER.encode(&hash.finalize());
    whole("application/json", format!("{}\n", serde_json::json!({"bytes": count, "sha256": digest})))
}

fn websocket(request: &mut Request<Incoming>, process: &Process) -> Response<Body> {
    let key = request.headers().get("sec-websocket-key").and_then(|key| key.to_str().ok()).map(accept_key);
    let Some(accept) = key.and_then(|accept| HeaderValue::from_str(&accept).ok()) else {
        let mut response = whole("text/plain", "this is a WebSocket\n".to_owned());
        *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
        return response;
    };
    let upgrading = hyper::upgrade::on(request);
    process.tasks.spawn(async move {
        if let Ok(upgraded) = upgrading.await {
            // An error means that the client has gone.
            let _ = echo_messages(TokioIo::new(upgraded)).await;
        }
    });
    let mut response = whole("text/plain", String::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert("sec-websocket-accept", accept);
    response
}

async fn echo_messages<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(mut stream: S) -> io::Result<()> {
    let (mut parser, mut input, mut message) = (Parser::new(Role::Server), BytesMut::new(), BytesMut::new());
    loop {
        let mut out = BytesMut::new();
        match parser.next(&mut input).map_err(io::Error::other)? {
            Some(Event::Data { payload, last }) => {
                message.extend_from_slice(&payload);
                if last {
                    put_frame(&mut out, Opcode::Text, &message, None);
                    message.clear();
                }
            }
            Some(Event::Ping(payload)) => put_frame(&mut out, Opcode::Pong, &payload, None),
            Some(Event::Pong) => {}
            Some(Event::Close(_)) => {
                put_frame(&mut out, Opcode::Close, &1000u16.to_be_bytes(), None);
                stream.write_all(&out).await?;
                return stream.shutdown().await;
            }
            None if stream.read_buf(&mut input).await? == 0 => return Ok(()),
            None => {}
        }
        stream.write_all(&out).await?;
    }
}

async fn echo(stream: DuplexStream) {
    let (mut read, mut write) = tokio::io::split(stream);
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}

/// Sends a greeting first, as MySQL and SSH do, then echoes.
async fn greet(mut stream: DuplexStream, pod: String) {
    if stream.write_all(format!("hello from {pod}\n").as_bytes()).await.is_ok() {
        echo(stream).await;
    }
}
