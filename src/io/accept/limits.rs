//! How many connections are accepted, and how long a client may take for what.

use std::time::Duration;

use socket2::TcpKeepalive;

/// The limits of accepted connections, on the laptop and on a relay's public side alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all. None: as many as the open-file limit allows. Default: none on a laptop, 8,192 on a relay.
    pub connections: Option<usize>,
    /// Connections from one address; from one /64 with IPv6, which is what one customer gets. None: no limit. Default: none
    /// on a laptop, whose clients all have the address 127.0.0.1, and 1,024 on a relay.
    pub per_address: Option<usize>,
    /// From the accept to the first byte, and from there to the end of a TLS handshake or to the preface of HTTP/2. Browsers
    /// open connections that they may never use. Default: 10 s.
    pub first_byte: Duration,
    /// For all headers of a request, from their first byte. A limit per byte would let a client that sends one now and then
    /// hold a connection for days; nginx and Go's servers limit the whole as well. Default: 30 s.
    pub head: Duration,
    /// From an answer to the next request. Browsers keep unused connections for minutes, and open new ones when these are
    /// closed. Default: 60 s.
    pub idle: Duration,
    /// Without a byte of a request's body. Default: 60 s.
    pub body: Duration,
    /// Without a byte from an HTTP/2 client until it gets a PING; it has half as long to answer. gRPC clients get a PING as
    /// often from Envoy and linkerd. Default: 30 s.
    pub ping: Duration,
    /// TCP keep-alive: without a byte until the first of three probes, which are half as far apart. A client that vanished
    /// behind a NAT or with its VPN is noticed after two and a half times this. Default: 20 s.
    pub keepalive: Duration,
    /// For requests and streams in progress once the process is to end. Default: 10 s.
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
            ping: Duration::from_secs(30),
            keepalive: Duration::from_secs(20),
            grace: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// Returns the limits of a relay, which strangers reach.
    pub fn of_relay() -> Self {
        Self { connections: Some(8192), per_address: Some(1024), ..Self::default() }
    }

    /// Returns how long the answer to a PING may take, without a byte in either direction.
    pub fn ping_answer(&self) -> Duration {
        self.ping / 2
    }

    /// Returns the settings of TCP keep-alive.
    pub fn tcp_keepalive(&self) -> TcpKeepalive {
        // The kernel counts in whole seconds, and refuses 0.
        let between = (self.keepalive / 2).max(Duration::from_secs(1));
        TcpKeepalive::new().with_time(self.keepalive.max(between)).with_interval(between).with_retries(3)
    }
}
