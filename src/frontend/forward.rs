//! The forward proxy: opens a stream to the host and port that a client names, as programs in the cluster name them.
//!
//! SOCKS5 and CONNECT read the request and report the result in their own replies.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use super::{
    Connection,
    client_socket::ClientSocket,
    join::join_while,
    noted,
    read_only::{ReadOnly, Unlocked},
};
use crate::{
    config::{ContextName, Elsewhere},
    error_code::ErrorCode,
    guard::locks::Locks,
    io::{BoxedIo, dial, splice::SpliceEnd, splice::splice},
    journal::{Kind, Ongoing},
    routing::{Route, RouteError, Router, SharedRouter},
    tunnel::{Lease, Manager, OpenError},
};

/// Timeout for a connection to a host of another network.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Destination in a request to the forward proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Context or alias that the client names. `None`: the current one.
    pub context: Option<ContextName>,
    /// A name, or an address without brackets.
    pub host: String,
    pub port: u16,
}

impl Asked {
    /// Returns host and port as in a URL.
    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Returns whether a cluster name or an address could also be one of the internet: `example.com`, 192.0.2.1.
    pub fn has_two_meanings(&self) -> bool {
        let host = self.host.strip_suffix('.').unwrap_or(&self.host).to_ascii_lowercase();
        let last = host.split_once('.').map(|(_, rest)| rest);
        let is_name = last.is_some_and(|last| !last.contains('.') && last != "svc" && last != "localhost");
        is_name || host.parse::<IpAddr>().is_ok()
    }

    /// Returns whether a name without a route is a host of another network. Without a context, every ambiguous name is.
    pub fn is_elsewhere(&self, error: &RouteError) -> bool {
        match error {
            RouteError::Elsewhere { .. } => true,
            RouteError::NoContext { .. } => self.has_two_meanings(),
            _ => false,
        }
    }
}

/// Opens the streams that clients of the forward proxy ask for.
pub struct Forward {
    router: SharedRouter,
    tunnels: Manager,
    locks: Arc<Locks>,
    /// Name of the user that this process runs as.
    own_user: Option<String>,
}

/// Why a client gets no stream.
#[derive(Clone, Debug, PartialEq)]
pub enum ForwardError {
    Route(RouteError),
    Open(Box<Route>, OpenError),
    /// The context accepts only some HTTP requests, and adit cannot see what a client would write to the stream.
    ReadOnly(ReadOnly),
    /// A host of another network was not reached.
    Direct {
        host: String,
        reason: String,
        is_timeout: bool,
    },
}

/// Stream to the destination.
pub enum Reached {
    Pod(Route, Lease, BoxedIo, Unlocked),
    Direct(TcpStream),
}

impl Forward {
    pub fn new(router: SharedRouter, tunnels: Manager, locks: Arc<Locks>) -> Arc<Self> {
        Arc::new(Self { router, tunnels, locks, own_user: own_user() })
    }

    /// Returns a stream once the destination has accepted it, and the connection's journal entry.
    ///
    /// # Errors
    /// The name has no target, the context forbids it, or nothing answers. The journal entry has the error.
    pub async fn reach(
        &self,
        kind: Kind,
        asked: &Asked,
        connection: &Connection,
    ) -> Result<(Reached, Ongoing), ForwardError> {
        let mut noted = noted::begin_unrouted(&self.tunnels, kind, &asked.authority(), connection).await;
        match self.open(asked, &mut noted).await {
            Ok(reached) => Ok((reached, noted)),
            Err(error) => {
                noted.error(error.code().as_str());
                Err(error)
            }
        }
    }

    async fn open(&self, asked: &Asked, noted: &mut Ongoing) -> Result<Reached, ForwardError> {
        let router = self.router.load_full();
        let (found, may_be_direct) = {
            let context = asked.context.as_ref().filter(|named| !self.is_of_jvm(named, &router));
            let elsewhere = router.config.proxy.as_ref().map_or(Elsewhere::Refuse, |proxy| proxy.elsewhere);
            let may_be_direct = elsewhere == Elsewhere::Direct && context.is_none();
            (router.forward(context, &asked.host, asked.port), may_be_direct)
        };
        let route = match found {
            // A direct connection involves no cluster.
            Ok(_) if may_be_direct && is_internet(&asked.host) => return direct(asked).await.map(Reached::Direct),
            Ok(route) => route,
            Err(error) if may_be_direct && asked.is_elsewhere(&error) => {
                return direct(asked).await.map(Reached::Direct);
            }
            Err(error) => return Err(ForwardError::Route(error)),
        };
        noted::leads(noted, &route);
        let rule = ReadOnly::in_force(&router.config, &route, &self.locks);
        let may_be_direct = may_be_direct && asked.has_two_meanings();
        if let Some(rule) = rule.clone().filter(|_| !may_be_direct) {
            return Err(ForwardError::ReadOnly(rule));
        }
        let lease = match self.tunnels.acquire(&route.target, route.idle_timeout).await {
            Ok(lease) => lease,
            // `example.com` could also be the Service `example` in the namespace `com`; there is none.
            Err(error) if may_be_direct && error.is_of_no_service() => {
                return direct(asked).await.map(Reached::Direct);
            }
            Err(error) => return Err(ForwardError::Open(Box::new(route), error)),
        };
        if let Some(rule) = rule {
            return Err(ForwardError::ReadOnly(rule));
        }
        let (stream, placement) = match lease.connect_taken().await {
            Ok(connected) => connected,
            Err(error) => return Err(ForwardError::Open(Box::new(route), error)),
        };
        noted::reached(noted, &lease, &placement);
        let unlocked = Unlocked::of(self.locks.clone(), ReadOnly::of(&router.config, &route));
        Ok(Reached::Pod(route, lease, stream, unlocked))
    }
}

impl Forward {
    /// Returns whether a user name is the one that a JVM sends by default: its `user.name`, if that is not a context.
    fn is_of_jvm(&self, named: &str, router: &Router) -> bool {
        let is_context = router.config.contexts.contains_key(named)
            || router.http_contexts.namespaces.keys().any(|context| *context == *named);
        !is_context && self.own_user.as_deref() == Some(named)
    }
}

/// Returns the user name of this process from /etc/passwd, else from $USER.
fn own_user() -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let of_file = user_of(&users, rustix::process::getuid().as_raw());
    of_file.or_else(|| std::env::var("USER").ok()).filter(|user| !user.is_empty())
}

/// Finds the name of a user id in the text of passwd(5).
fn user_of(users: &str, id: u32) -> Option<String> {
    let user = |line: &str| {
        let mut fields = line.split(':');
        let (name, _password, number) = (fields.next()?, fields.next()?, fields.next()?);
        (number.parse() == Ok(id)).then(|| name.to_owned())
    };
    users.lines().find_map(user)
}

impl Reached {
    /// Copies bytes between the client and the destination until both sides have ended.
    pub async fn join(self, client: &mut BoxedIo, socket: ClientSocket, mut noted: Ongoing) -> SpliceEnd {
        let end = match self {
            Self::Pod(_, lease, mut stream, unlocked) => {
                join_while(&unlocked, client, &mut stream, &lease, socket).await
            }
            Self::Direct(mut stream) => splice(client, &mut stream).await,
        };
        noted::ended(&mut noted, &end);
        end
    }

    /// Returns the target for logs; `direct` for a host of another network.
    pub fn name(&self) -> String {
        match self {
            Self::Pod(route, ..) => route.target.to_string(),
            Self::Direct(_) => "direct".to_owned(),
        }
    }
}

impl ForwardError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Route(error) => error.code(),
            Self::Open(_, error) => error.code(),
            Self::ReadOnly(_) => ErrorCode::ReadOnly,
            Self::Direct { .. } => ErrorCode::Direct,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Route(error) => error.hint(),
            Self::Open(_, error) => error.hint(),
            Self::ReadOnly(rule) => Some(rule.unlock()),
            Self::Direct { .. } => None,
        }
    }
}

impl std::fmt::Display for ForwardError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Route(error) => error.fmt(f),
            Self::Open(_, error) => error.fmt(f),
            Self::ReadOnly(rule) => f.write_str(&rule.title()),
            Self::Direct { host, reason, .. } => write!(f, "cannot reach {host}: {reason}"),
        }
    }
}

/// Connects to a host of the internet, at the first of its addresses that answers. Addresses of this machine, of local networks and
/// of documentation do not count.
///
/// # Errors
/// The name is not known, all addresses are this machine's, or none answers in time.
pub async fn direct(asked: &Asked) -> Result<TcpStream, ForwardError> {
    let Asked { host, port, .. } = asked;
    let failed = |reason: &str, is_timeout| ForwardError::Direct {
        host: format!("{host}:{port}"),
        reason: reason.to_owned(),
        is_timeout,
    };
    let connecting = async {
        let found: Vec<SocketAddr> = match lookup_host((host.as_str(), *port)).await {
            Ok(found) => found.collect(),
            Err(_) => return Err(failed("its name is not known", false)),
        };
        let is_here = || ForwardError::Route(RouteError::Elsewhere { host: host.clone() });
        let global: Vec<SocketAddr> = found.iter().copied().filter(|address| is_global(address.ip())).collect();
        if global.is_empty() && !found.is_empty() {
            return Err(is_here());
        }
        let stream = dial::connect(global.into_iter()).await.map_err(|error| {
            let reason = match error.kind() {
                io::ErrorKind::ConnectionRefused => "it refuses the connection",
                io::ErrorKind::NotFound => "its name has no address",
                _ => "there is no route to it",
            };
            failed(reason, false)
        })?;
        // This machine itself may have the address.
        if stream.local_addr().is_ok_and(|local| stream.peer_addr().is_ok_and(|peer| peer.ip() == local.ip())) {
            return Err(is_here());
        }
        let _ = stream.set_nodelay(true);
        Ok(stream)
    };
    match timeout(DIRECT_TIMEOUT, connecting).await {
        Ok(connected) => connected,
        Err(_) => Err(failed("it does not answer", true)),
    }
}

/// Returns whether a host is a public address.
pub fn is_internet(host: &str) -> bool {
    host.parse().is_ok_and(is_global)
}

/// Returns whether an address is public: not of this machine, of a local network, of a test or of documentation.
fn is_global(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            !(ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_documentation()
                || a == 0
                || a >= 240
                // Carriers' networks (RFC 6598), protocols (RFC 6890), benchmarks (RFC 2544).
                || (a == 100 && b & 0xc0 == 64)
                || (a, b, c) == (192, 0, 0)
                || (a == 198 && b & 0xfe == 18))
        }
        IpAddr::V6(ip) => {
            // DNS64 (RFC 6147) puts the IPv4 address of a host behind the well-known prefix of NAT64 (RFC 6052).
            if let ([0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0], ip) = ip.octets().split_at(12)
                && let Ok(ip) = <[u8; 4]>::try_from(ip)
            {
                return is_global(ip.into());
            }
            // Global unicast (RFC 4291) without documentation, and without 6to4 and Teredo, which carry an IPv4 address.
            let [first, second, ..] = ip.segments();
            first & 0xe000 == 0x2000 && first != 0x2002 && !(first == 0x2001 && matches!(second, 0 | 0x0db8))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_user_is_found_in_passwd() {
        let users = "root:x:0:0:::\nbroken\nana:x:1000:1000:::\n";
        assert_eq!(user_of(users, 0).as_deref(), Some("root"));
        assert_eq!(user_of(users, 1000).as_deref(), Some("ana"));
        assert_eq!(user_of(users, 1), None);
        assert_eq!(user_of("", 0), None);
    }

    #[test]
    fn two_labels_and_addresses_could_be_of_the_internet() {
        let of = |host: &str| Asked { context: None, host: host.to_owned(), port: 80 }.has_two_meanings();
        assert!(["example.com", "Example.COM.", "web.shop", "1.1.1.1", "2606:4700::1"].into_iter().all(of));
        let ours =
            ["web", "web.svc", "web.shop.svc", "web.shop.svc.cluster.local", "web.localhost", "web.shop.localhost"];
        assert!(!ours.into_iter().any(of));
    }

    #[test]
    fn where_there_is_no_cluster_a_name_is_one_of_the_internet() {
        let of = |host: &str| Asked { context: None, host: host.to_owned(), port: 80 };
        let denied = RouteError::DynamicDenied { context: "c".to_owned(), host: "h".to_owned() };
        let without = RouteError::NoContext { host: "h".to_owned(), reason: "r".to_owned(), kubectl: "k".to_owned() };
        let elsewhere = RouteError::Elsewhere { host: "h".to_owned() };
        for (host, error, is_elsewhere) in [
            ("example.com", &denied, false),
            ("example.com", &without, true),
            ("web.shop.svc", &without, false),
            ("web.shop.localhost", &without, false),
            ("www.example.com", &elsewhere, true),
        ] {
            assert_eq!(of(host).is_elsewhere(error), is_elsewhere, "{host}: {error:?}");
        }
    }

    #[test]
    fn only_addresses_of_the_internet_are_reached_directly() {
        for ip in
            ["1.1.1.1", "100.63.0.1", "100.128.0.1", "172.32.0.1", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]
        {
            assert!(is_global(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2001::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b::7f00:1",
            "64:ff9b::1:808:808",
            "64:ff9b:1::808:808",
        ] {
            assert!(!is_global(ip.parse().unwrap()), "{ip}");
        }
    }
}
