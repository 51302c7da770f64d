//! What a relay tells of itself, on loopback: `/healthz`, `/readyz`, `/metrics`, and a page of its tunnels.

use std::{convert::Infallible, sync::Arc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::server::Server;
use crate::{
    drain::Drain,
    guard::origin::is_of_this_machine,
    io::accept,
    metrics::{self, Exposition},
};

const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Answers until the drain is cut.
pub async fn serve(listener: TcpListener, server: Arc<Server>, drain: Drain) {
    let serve = |stream: TcpStream, _| {
        let server = server.clone();
        drain.spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&server, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
            // What goes wrong on it is the caller's to tell.
            let _ = timeout(ANSWER_WITHIN, connection).await;
        });
    };
    match accept::accept(&listener, 1, serve, |_| async {}).await {}
}

fn answer(server: &Server, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (is_of_this_machine(request.headers()), request.method(), request.uri().path()) {
        (false, ..) => (StatusCode::FORBIDDEN, "text/plain", "this is for programs of this machine\n".to_owned()),
        (_, &Method::GET, "/healthz") => (StatusCode::OK, "text/plain", "ok\n".to_owned()),
        (_, &Method::GET, "/readyz") if server.is_ready() => (StatusCode::OK, "text/plain", "ready\n".to_owned()),
        (_, &Method::GET, "/readyz") => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", "stopping\n".to_owned()),
        (_, &Method::GET, "/metrics") => (StatusCode::OK, metrics::CONTENT_TYPE, counters(server)),
        (_, &Method::GET, "/") => (StatusCode::OK, "text/html; charset=utf-8", page(server)),
        _ => (StatusCode::NOT_FOUND, "text/plain", "there are /, /healthz, /readyz and /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn counters(server: &Server) -> String {
    let (mut text, counters) = (Exposition::default(), &server.counters);
    let tunnels = server.snapshot();
    text.family("adit_relay_tunnels", "gauge", "Tunnels that are open.");
    text.sample("adit_relay_tunnels", &[], tunnels.len());
    text.family("adit_relay_streams_open", "gauge", "Streams that are open.");
    text.sample("adit_relay_streams_open", &[], tunnels.iter().map(|tunnel| tunnel.streams).sum::<usize>());
    for (name, help, counter) in [
        ("adit_relay_sessions", "Control connections of clients.", &counters.sessions),
        ("adit_relay_rejected", "Connections that were rejected.", &counters.rejected),
        ("adit_relay_visitors", "Connections to public ports and names.", &counters.visitors),
        ("adit_relay_visitors_refused", "Visitors that reached nobody.", &counters.refused_visitors),
    ] {
        text.family(name, "counter", help);
        text.sample(&format!("{name}_total"), &[], counter.load(Ordering::Relaxed));
    }
    text.family("adit_relay_bytes", "counter", "Bytes through TCP tunnels: up to the clients, down to the visitors.");
    text.sample("adit_relay_bytes_total", &[("direction", "up")], counters.up.load(Ordering::Relaxed));
    text.sample("adit_relay_bytes_total", &[("direction", "down")], counters.down.load(Ordering::Relaxed));
    text.finish()
}

fn page(server: &Server) -> String {
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let rows: String = server
        .snapshot()
        .iter()
        .map(|tunnel| {
            let (public, key) = (escape(&tunnel.public), escape(&tunnel.key));
            format!("<tr><td>{public}<td>{}<td>{key}<td>{}<td>{}", tunnel.kind, tunnel.client, tunnel.streams)
        })
        .collect();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"5\"><title>adit relay</title>\
         <style>html{{color-scheme:light dark;font:16px/1.5 system-ui,sans-serif}}td,th{{padding:.2em 1em;text-align:left}}</style>\
         <h1>adit relay</h1><table><tr><th>Public<th>Kind<th>Key<th>Client<th>Streams{rows}</table></html>\n"
    )
}
