//! Limits of accepted connections: their number, and the time that a client may take.

use std::time::Duration;

use socket2::TcpKeepalive;

/// Limits of accepted connections, on a laptop and on the public side of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of connections. `None`: as many as the open-file limit allows. Default: `None` on a laptop, 8,192
    /// on a relay.
    pub connections: Option<usize>,
    /// Maximum number of connections from one address, or with IPv6 from one /64, which is what one customer gets.
    /// `None`: no limit. Default: `None` on a laptop, whose clients all have the address 127.0.0.1, and 1,024 on a
    /// relay.
    pub per_address: Option<usize>,
    /// Time from the accept to the first byte, and from there to the end of the TLS handshake or the HTTP/2 preface.
    /// Browsers open connections that they may never use. Default: 10 s.
    pub first_byte: Duration,
    /// Time for all headers of a request, from their first byte. With a limit per byte, a client that sends one byte
    /// now and then could hold a connection for days; nginx and Go's servers limit the whole as well. Default: 30 s.
    pub head: Duration,
    /// Time from an answer to the next request. Browsers keep unused connections for minutes, and open new ones if
    /// these are closed. Default: 60 s.
    pub idle: Duration,
    /// Time without a byte of a request's body. Default: 60 s.
    pub body: Duration,
    /// Flow-control window of an HTTP/2 connection, in bytes: how much of all its uploads may wait for the backends. A stream has
    /// at most 1 MiB. Default: 250 MiB on a laptop, as much as 250 streams can have, and 32 MiB on a relay.
    pub window: u32,
    /// Memory of an HTTP/2 connection for DATA frames that nobody reads and that are shorter than 256 bytes, in bytes:
    /// 256 for each, less its length. At this limit, the connection ends with all its streams. Default: no limit but the
    /// windows on a laptop, and 64 MiB on a relay: a stream of the shortest gRPC messages that fills its window.
    pub short_frames: usize,
    /// Time without a byte from an HTTP/2 client until it gets a PING. It has half as long to answer. Envoy and linkerd
    /// ping gRPC clients as often. Default: 30 s.
    pub ping: Duration,
    /// TCP keep-alive: time without a byte until the first of three probes, which are half as far apart. So adit
    /// notices after two and a half times this that a client has vanished behind a NAT or with its VPN. Default: 20 s.
    pub keepalive: Duration,
    /// Time for requests and streams in progress during a drain. Default: 10 s.
    pub grace: Duration,
}

/// The limits of a laptop.
impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: None,
            per_address: None,
            first_byte: Duration::from_secs(10),
            head: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            body: Duration::from_secs(60),
            window: 250 << 20,
            short_frames: usize::MAX,
            ping: Duration::from_secs(30),
            keepalive: Duration::from_secs(20),
            grace: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// Returns the limits of a relay, which strangers can reach.
    pub fn of_relay() -> Self {
        Self {
            connections: Some(8192),
            per_address: Some(1024),
            window: 32 << 20,
            short_frames: 64 << 20,
            ..Self::default()
        }
    }

    /// Returns how long the answer to a PING may take, if no byte moves in either direction.
    pub fn ping_answer(&self) -> Duration {
        self.ping / 2
    }

    /// Returns the settings of TCP keep-alive.
    pub fn tcp_keepalive(&self) -> TcpKeepalive {
        // The kernel counts whole seconds, and rejects 0.
        let between = (self.keepalive / 2).max(Duration::from_secs(1));
        TcpKeepalive::new().with_time(self.keepalive.max(between)).with_interval(between).with_retries(3)
    }
}
