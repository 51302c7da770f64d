//! Interim responses of the pod (RFC 9110, section 15.2), 103 Early Hints among them.
//!
//! 100 asks for the body, where the client waits for that; the client gets one from adit's server, once the body is read.

use std::{future::poll_fn, pin::Pin, sync::Arc};

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, Request, StatusCode, Version, header::CONTENT_LENGTH};

use tokio::task::yield_now;

use super::headers;
use crate::guard::normaliser::Gate;

/// The way to a client of HTTP/2; an extension of its request.
#[derive(Clone)]
pub struct ToClient(Arc<dyn Fn(StatusCode, HeaderMap) + Send + Sync>);

impl ToClient {
    pub fn new(send: impl Fn(StatusCode, HeaderMap) + Send + Sync + 'static) -> Self {
        Self(Arc::new(send))
    }
}

/// Is told what the pod says of a request before it answers; an extension of that request.
#[derive(Clone, Default)]
pub struct Listener {
    tell: Option<Arc<dyn Fn(StatusCode, HeaderMap) + Send + Sync>>,
    /// Called when the pod asks for the body.
    ask: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Listener {
    fn new(tell: impl Fn(StatusCode, HeaderMap) + Send + Sync + 'static) -> Self {
        Self { tell: Some(Arc::new(tell)), ask: None }
    }

    /// Returns the listener of a request whose body waits for `ask`.
    pub fn asking(self, ask: impl Fn() + Send + Sync + 'static) -> Self {
        Self { ask: Some(Arc::new(ask)), ..self }
    }

    pub fn tell(&self, status: StatusCode, headers: &HeaderMap) {
        if status == StatusCode::CONTINUE {
            // The client gets it from the server, once the body is read.
            if let Some(ask) = &self.ask {
                ask();
            }
        } else if let Some(tell) = &self.tell {
            let mut headers = headers.clone();
            headers::remove_hop_by_hop(&mut headers);
            headers.remove(CONTENT_LENGTH);
            tell(status, headers);
        }
    }
}

/// Interim responses of one request to a client of HTTP/1.1. None: there are none, or HTTP/2 sends them.
pub struct Interim(Option<(Arc<Gate>, u64)>);

impl Interim {
    /// Puts a listener into the request. `version`: the client's. `gate`: of his connection, where that is of HTTP/1.
    pub fn of<B>(request: &mut Request<B>, version: Version, gate: Option<&Arc<Gate>>) -> Self {
        if let Some(ToClient(send)) = request.extensions_mut().remove::<ToClient>() {
            request.extensions_mut().insert(Listener::new(move |status, headers| send(status, headers)));
        }
        let Some(gate) = gate.filter(|_| version == Version::HTTP_11) else { return Self(None) };
        let (gate, number) = (gate.clone(), gate.interim.hear());
        let telling = gate.clone();
        request.extensions_mut().insert(Listener::new(move |status, headers| {
            telling.interim.tell(number, &head(status, &headers));
        }));
        Self(Some((gate, number)))
    }

    /// Lets the client have it while the request goes on.
    pub async fn beside<F: Future>(self, mut sending: Pin<&mut F>) -> F::Output {
        let Some((gate, number)) = self.0 else { return sending.await };
        let sent = poll_fn(|cx| {
            // The server's task is woken: it flushes, and that is when the client gets it.
            gate.interim.register(cx.waker());
            sending.as_mut().poll(cx)
        })
        .await;
        if gate.interim.is_waiting(number) {
            // They came with the answer: the server flushes them before it begins that.
            yield_now().await;
        }
        gate.interim.forget(number);
        sent
    }
}

fn head(status: StatusCode, headers: &HeaderMap) -> BytesMut {
    let mut head = BytesMut::new();
    head.put_slice(format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or("")).as_bytes());
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.put_slice(part);
        }
    }
    head.put_slice(b"\r\n");
    head
}
