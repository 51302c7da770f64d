//! Admin interface of a relay: `/healthz`, `/readyz`, `/metrics`, and, on loopback, a page of its tunnels.

use std::{
    convert::Infallible,
    future::ready,
    sync::{Arc, atomic::Ordering},
};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::net::{TcpListener, TcpStream};

use super::{page, server::Server};
use crate::{
    admin::http::{Body, TEXT, is_read, probe, read_only, respond, serve_one},
    drain::Drain,
    guard::origin::is_of_this_machine,
    io::accept::{self, Admission, Limits, Names},
    metrics::Exposition,
};

/// Clients of an admin listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Programs on this machine. They also see the page of tunnels, with the addresses of clients.
    Machine,
    /// Any client that can reach the port, such as Prometheus and the kubelet. They see only health and metrics.
    Network,
}

/// Answers requests as long as it is polled.
pub async fn serve(listener: TcpListener, server: Arc<Server>, reach: Reach, drain: Drain) -> Infallible {
    let admission = Admission::new(Limits::default(), Names::default());
    let serve = |stream: TcpStream, _, _| {
        let server = server.clone();
        drain.spawn(async move { serve_one(stream, |request| ready(answer(&server, reach, &request))).await });
    };
    accept::accept(&listener, &admission, 1, serve, |_, _| async {}).await
}

fn answer(server: &Server, reach: Reach, request: &Request<Incoming>) -> Response<Body> {
    if reach == Reach::Machine && !is_of_this_machine(request.headers()) {
        return respond(StatusCode::FORBIDDEN, TEXT, "this is for programs of this machine\n");
    }
    if let Some(response) = probe(request, server.is_ready(), || counters(server)) {
        return response;
    }
    let (page, there_are) = match reach {
        Reach::Machine => (page::answer(server, request), "there are /, /healthz, /readyz and /metrics\n"),
        Reach::Network => (None, "there are /healthz, /readyz and /metrics\n"),
    };
    match page {
        Some(_) if !is_read(request.method()) => read_only(),
        Some(response) => response,
        None => respond(StatusCode::NOT_FOUND, TEXT, there_are),
    }
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
        ("adit_relay_visitors_refused", "Visitors that reached no client.", &counters.refused_visitors),
    ] {
        text.family(name, "counter", help);
        text.sample(&format!("{name}_total"), &[], counter.load(Ordering::Relaxed));
    }
    text.family("adit_relay_bytes", "counter", "Bytes through TCP tunnels: up to the clients, down to the visitors.");
    text.sample("adit_relay_bytes_total", &[("direction", "up")], counters.up.load(Ordering::Relaxed));
    text.sample("adit_relay_bytes_total", &[("direction", "down")], counters.down.load(Ordering::Relaxed));
    let parted = &server.parted;
    let name = "adit_relay_personal_requests";
    text.family(name, "counter", "Requests to ports that are taken over in part, by destination.");
    for (to, counter) in [("laptop", &parted.to_laptops), ("pods", &parted.to_pods)] {
        text.sample(&format!("{name}_total"), &[("to", to)], counter.load(Ordering::Relaxed));
    }
    let name = "adit_relay_personal_passed";
    text.family(name, "counter", "Connections to such ports that are not HTTP, and went to pods as they are.");
    text.sample(&format!("{name}_total"), &[], parted.passed.load(Ordering::Relaxed));
    text.finish()
}
