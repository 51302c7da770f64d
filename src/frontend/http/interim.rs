//! Interim responses of the pod (RFC 9110, section 15.2), such as 103 Early Hints.
//!
//! A 100 is not passed on: it asks for the body, and adit's server sends the client its own 100 once the body is read.

use std::{future::poll_fn, pin::Pin, sync::Arc};

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, Request, StatusCode, Version, header::CONTENT_LENGTH};

use tokio::task::yield_now;

use super::headers;
use crate::guard::normaliser::Gate;

/// Sends interim responses to an HTTP/2 client; an extension of its request.
#[derive(Clone)]
pub struct ToClient(Arc<dyn Fn(StatusCode, HeaderMap) + Send + Sync>);

impl ToClient {
    pub fn new(send: impl Fn(StatusCode, HeaderMap) + Send + Sync + 'static) -> Self {
        Self(Arc::new(send))
    }
}

/// Receives the pod's interim responses to a request; an extension of that request.
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

    /// Returns a listener that calls `ask` when the pod sends a 100.
    pub fn asking(self, ask: impl Fn() + Send + Sync + 'static) -> Self {
        Self { ask: Some(Arc::new(ask)), ..self }
    }

    pub fn tell(&self, status: StatusCode, headers: &HeaderMap) {
        if status == StatusCode::CONTINUE {
            // adit's server sends the client a 100 once the body is read.
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

/// Interim responses to one request of an HTTP/1.1 client. `None`: there are none, or HTTP/2 sends them.
pub struct Interim(Option<(Arc<Gate>, u64)>);

impl Interim {
    /// Puts a listener into the request. `version`: the client's. `gate`: that of an HTTP/1 client's connection.
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

    /// Sends interim responses to the client while the request goes on.
    pub async fn beside<F: Future>(self, mut sending: Pin<&mut F>) -> F::Output {
        let Some((gate, number)) = self.0 else { return sending.await };
        let sent = poll_fn(|cx| {
            // An interim response wakes the server's task, which then flushes it to the client.
            gate.interim.register(cx.waker());
            sending.as_mut().poll(cx)
        })
        .await;
        if gate.interim.is_waiting(number) {
            // They came together with the answer: yield, so that the server flushes them before it begins the answer.
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
