//! An entry of the journal: one request, or one connection that is not HTTP.

use std::{
    fmt,
    ops::Deref,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use http::Method;
use tokio::sync::OnceCell;

use super::exchange::Exchange;

/// Maximum bytes kept of each text that a client chooses.
const LONGEST_HOST: usize = 255;
const LONGEST_PATH: usize = 512;
const LONGEST_ERROR: usize = 256;
const LONGEST_METHOD: usize = 24;

/// gRPC statuses that are not the client's fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
/// gRPC's own metrics count the same codes as server errors.
const GRPC_FAULTS: [u32; 6] = [2, 4, 12, 13, 14, 15];

/// Kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Http,
    /// gRPC over HTTP/2.
    Grpc,
    WebSocket,
    /// Server-Sent Events.
    EventStream,
    /// A connection of a TCP route.
    Tcp,
    /// TLS passed through to the pod.
    Tls,
    /// A connection of the SNI listener.
    Sni,
    Postgres,
    /// A SOCKS5 connection to the forward proxy.
    Socks,
    /// A CONNECT tunnel through the forward proxy.
    Connect,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::WebSocket => "websocket",
            Self::EventStream => "sse",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Sni => "sni",
            Self::Postgres => "postgres",
            Self::Socks => "socks",
            Self::Connect => "connect",
        }
    }

    /// Returns whether the kind is an HTTP request, not a connection.
    pub fn is_request(self) -> bool {
        matches!(self, Self::Http | Self::Grpc | Self::WebSocket | Self::EventStream)
    }
}

/// Facts about one request or connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Number of the entry, counted from 1 for the whole process.
    pub id: u64,
    /// Version of the journal at the entry's last change.
    pub version: u64,
    pub kind: Kind,
    pub at: SystemTime,
    /// Start on the monotonic clock, for measuring.
    pub began: Option<Instant>,
    /// Id of the client's connection in the log.
    pub connection: u64,
    pub method: Option<Method>,
    /// Requested name or local address.
    pub host: Box<str>,
    /// Path without the query, which may hold secrets.
    pub path: Box<str>,
    pub status: Option<u16>,
    /// Error code, or how a connection broke.
    pub error: Option<Box<str>>,
    /// Name of the route.
    pub route: Option<Arc<str>>,
    /// Id of the tunnel.
    pub tunnel: Option<Arc<str>>,
    pub pod: Option<Arc<str>>,
    /// Time from the start until the tunnel ran.
    pub tunnel_after: Option<Duration>,
    /// Time from the start until the connection to the pod was ready.
    pub connected_after: Option<Duration>,
    /// Time from the start to the first byte of the response.
    pub first_byte: Option<Duration>,
    /// Time from the start to the end. `None`: in progress.
    pub took: Option<Duration>,
    /// Bytes from the client to the pod; for a request, those of its body.
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Number of retries.
    pub retries: u32,
    /// Id of the entry that this one is a replay of.
    pub replay_of: Option<u64>,
    /// gRPC status (`grpc-status`), which comes in the trailers.
    pub grpc_status: Option<u32>,
    /// WebSocket messages or Server-Sent Events received from the pod.
    pub messages: u64,
    /// WebSocket messages sent by the client.
    pub messages_up: u64,
    /// The client's program. `None`: there is no audit log, or the request is a replay.
    pub client: Option<Client>,
    /// Recording, for the detail view and replays. `None`: the dashboard is off, or newer recordings needed the
    /// memory.
    pub exchange: Option<Kept>,
}

/// The program at the other end of a connection, if the kernel knows it. A background task fills it in.
#[derive(Clone, Debug, Default)]
pub struct Client(pub Arc<OnceCell<Program>>);

impl PartialEq for Client {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A local program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// `None`: the client is on another machine.
    pub uid: Option<u32>,
    /// `None`: the program had ended, or belongs to another user.
    pub pid: Option<u32>,
    /// Path of its executable.
    pub path: Option<PathBuf>,
}

/// Shared recording of a request. Two are equal if they are the same allocation.
#[derive(Clone)]
pub struct Kept(Arc<Exchange>);

impl From<Arc<Exchange>> for Kept {
    fn from(exchange: Arc<Exchange>) -> Self {
        Self(exchange)
    }
}

impl Deref for Kept {
    type Target = Arc<Exchange>;

    fn deref(&self) -> &Arc<Exchange> {
        &self.0
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// Hides the content, because it has secrets.
impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept")
    }
}

impl Entry {
    /// Returns an entry that begins now.
    pub fn new(kind: Kind) -> Self {
        Self {
            id: 0,
            version: 0,
            kind,
            at: SystemTime::now(),
            began: Some(Instant::now()),
            connection: 0,
            method: None,
            host: "".into(),
            path: "".into(),
            status: None,
            error: None,
            route: None,
            tunnel: None,
            pod: None,
            tunnel_after: None,
            connected_after: None,
            first_byte: None,
            took: None,
            bytes_up: 0,
            bytes_down: 0,
            retries: 0,
            replay_of: None,
            grpc_status: None,
            messages: 0,
            messages_up: 0,
            client: None,
            exchange: None,
        }
    }

    pub fn with_method(mut self, method: &Method) -> Self {
        self.method = match method.as_str().len() > LONGEST_METHOD {
            true => Method::from_bytes(&method.as_str().as_bytes()[..LONGEST_METHOD]).ok(),
            false => Some(method.clone()),
        };
        self
    }

    pub fn with_host(mut self, host: &str) -> Self {
        self.host = start(host, LONGEST_HOST).into();
        self
    }

    pub fn with_path(mut self, path: &str) -> Self {
        self.path = start(path, LONGEST_PATH).into();
        self
    }

    pub fn with_error(mut self, error: &str) -> Self {
        self.error = Some(start(error, LONGEST_ERROR).into());
        self
    }

    /// Returns whether it failed, and not by its client's fault.
    pub fn is_error(&self) -> bool {
        match self.status {
            _ if self.grpc_status.is_some_and(|status| GRPC_FAULTS.contains(&status)) => true,
            Some(status) => status >= 500 || (self.error.is_some() && status < 400),
            None => self.error.is_some(),
        }
    }

    /// Returns the time from the start to the end, or to now.
    pub fn elapsed(&self) -> Duration {
        self.took.or_else(|| self.began.map(|began| began.elapsed())).unwrap_or_default()
    }
}

/// Returns at most `most` first bytes of a text, cut between characters.
pub(super) fn start(text: &str, most: usize) -> &str {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!((start("aäb", 2), start("aäb", 3), start("ab", 9)), ("a", "aä", "ab"));
        let method = Method::from_bytes("M".repeat(1_000).as_bytes()).unwrap();
        assert_eq!(Entry::new(Kind::Http).with_method(&method).method.unwrap().as_str().len(), LONGEST_METHOD);
    }

    #[test]
    fn the_clients_own_mistakes_are_no_errors() {
        let of = |status, error: Option<&str>| {
            Entry { status, error: error.map(Into::into), ..Entry::new(Kind::Http) }.is_error()
        };
        assert!(of(Some(502), Some("not-ready")) && of(Some(200), Some("broken")) && of(None, Some("reset")));
        assert!(!of(Some(404), Some("unknown-host")) && !of(Some(200), None) && !of(None, None));
    }
}
