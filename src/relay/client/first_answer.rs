//! First answer of a local service, checked for a refused Host header. Dev servers refuse public names that way.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::mpsc,
};

use super::{ClientState, LocalEnd, Wanted};
use crate::io::{
    Io,
    through::{said_through, write_through},
};

/// Texts in a 400 or 403 answer to an unknown Host header, one per server.
const REFUSALS: [&[u8]; 4] = [
    // Vite: server/middlewares/hostCheck.ts
    b"Blocked request. This host",
    // webpack-dev-server: lib/Server.js
    b"Invalid Host header",
    // Rails: ActionDispatch::HostAuthorization
    b"Blocked host",
    // Django: core/exceptions.py
    b"DisallowedHost",
];

/// Maximum length of an answer to search, in bytes. The page of Rails has 5 KiB.
const LONGEST: usize = 16 * 1024;

/// A connection to a local service that detects whether the service refuses the Host header.
pub struct FirstAnswer {
    inner: TcpStream,
    port: u16,
    /// Start of the first answer. `None`: it is not a refusal.
    start: Option<Vec<u8>>,
    /// Whether a refusal was reported already, for all visitors of a tunnel.
    is_told: Arc<AtomicBool>,
    /// Gets the refusal.
    states: mpsc::Sender<ClientState>,
}

impl FirstAnswer {
    pub fn new(inner: TcpStream, end: &LocalEnd, wanted: &Wanted, states: mpsc::Sender<ClientState>) -> Self {
        Self { inner, port: wanted.local_port, start: Some(Vec::new()), is_told: end.has_refused_host.clone(), states }
    }

    fn note(&mut self, bytes: &[u8]) {
        if !refuses_host(&mut self.start, bytes) || self.is_told.swap(true, Ordering::Relaxed) {
            return;
        }
        // There is room for each tunnel. Without a reader the client has ended.
        let _ = self.states.try_send(ClientState::HostRefused { local_port: self.port });
    }
}

/// Adds the next bytes of an answer, and returns whether they complete a refusal. `start`: the bytes before; `None` once
/// the search is over.
fn refuses_host(start: &mut Option<Vec<u8>>, bytes: &[u8]) -> bool {
    let Some(kept) = start else { return false };
    let room = LONGEST - kept.len();
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    let may_be = match kept.get(..12) {
        Some(line) => line.starts_with(b"HTTP/1.") && (line.ends_with(b" 400") || line.ends_with(b" 403")),
        None => !kept.is_empty() && b"HTTP/1.".starts_with(&kept[..kept.len().min(7)]),
    };
    let is_it = may_be && REFUSALS.iter().any(|text| kept.windows(text.len()).any(|window| window == *text));
    if is_it || !may_be || kept.len() == LONGEST {
        *start = None;
    }
    is_it
}

impl AsyncRead for FirstAnswer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if polled.is_ready() && self.start.is_some() {
            self.note(&buf.filled()[before..]);
        }
        polled
    }
}

impl AsyncWrite for FirstAnswer {
    write_through!();
}

impl Io for FirstAnswer {
    said_through!();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns whether an answer in pieces of `length` bytes is a refusal.
    fn refuses(answer: &str, length: usize) -> bool {
        let mut start = Some(Vec::new());
        answer.as_bytes().chunks(length).filter(|piece| refuses_host(&mut start, piece)).count() == 1
    }

    #[test]
    fn answers_of_dev_servers_to_a_host_that_they_do_not_know_are_known() {
        let rails =
            format!("HTTP/1.1 403 Forbidden\r\n\r\n<!DOCTYPE html>{}<h1>Blocked host: a</h1>", " ".repeat(5_000));
        for answer in [
            "HTTP/1.1 403 Forbidden\r\n\r\nBlocked request. This host (\"a\") is not allowed.\n",
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 19\r\n\r\nInvalid Host header",
            &rails,
            "HTTP/1.1 400 Bad Request\r\n\r\n<title>DisallowedHost\n at /</title>",
        ] {
            for length in [1, 7, 100_000] {
                assert!(refuses(answer, length), "{length}: {answer}");
            }
        }
        for answer in [
            "HTTP/1.1 200 OK\r\n\r\nInvalid Host header",
            "HTTP/1.1 403 Forbidden\r\n\r\nno",
            "220 mail ready: Invalid Host header",
            "",
        ] {
            assert!(!refuses(answer, 1) && !refuses(answer, 100_000), "{answer}");
        }
        let long = format!("HTTP/1.1 403 Forbidden\r\n\r\n{}Invalid Host header", " ".repeat(LONGEST));
        assert!(!refuses(&long, 100_000), "it is too far down");
    }
}
