//! Binds the sockets of a configuration.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::net::TcpListener;
use tracing::{debug, warn};

use super::inherited::Inherited;
use crate::{config::Config, io::accept};

/// Kind of a listener: the handler of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Http,
    /// The forward proxy, if it has an address of its own.
    Proxy,
    Tcp,
    Sni,
    Admin,
}

/// A listener, by kind and configured address.
pub type Key = (Kind, SocketAddr);

/// A socket that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", reason(source))]
pub struct BindError {
    pub kind: Kind,
    pub address: SocketAddr,
    /// Key or option that asks for the address: `tcp.k8s.routes.5432`.
    pub asked_by: String,
    pub source: io::Error,
}

impl BindError {
    /// Returns the configuration change that avoids a port in use.
    pub fn other_port(&self) -> String {
        match self.kind {
            Kind::Tcp => format!("rename {} to a free port", self.asked_by),
            _ => format!("set {} to another port", self.asked_by),
        }
    }

    /// Returns what the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let Self { kind, address, asked_by, source } = self;
        let port = address.port();
        match (source.kind(), kind) {
            (io::ErrorKind::AddrInUse, Kind::Http) => {
                Some(format!("is another adit running? try 'adit status', or set {asked_by} to another port"))
            }
            (io::ErrorKind::AddrInUse, Kind::Tcp | Kind::Proxy | Kind::Sni | Kind::Admin) => Some(format!(
                "{}, or stop the program that has it: lsof -nP -iTCP:{port} -sTCP:LISTEN",
                self.other_port()
            )),
            (io::ErrorKind::PermissionDenied, _) => {
                let other = if *kind == Kind::Tcp { "rename" } else { "set" };
                let allowed = allow(port).map(|command| format!("; to allow it: {command}")).unwrap_or_default();
                Some(format!("ports below 1024 need permission: {other} {asked_by} to a higher one{allowed}"))
            }
            (io::ErrorKind::AddrNotAvailable, Kind::Tcp) => {
                Some(format!("this machine does not have that address: change {asked_by}.listen"))
            }
            (io::ErrorKind::AddrNotAvailable, _) => {
                Some(format!("this machine does not have that address: change {asked_by}"))
            }
            _ => None,
        }
    }
}

/// Returns the command that allows ordinary users to listen on this port and all above it, even after a restart.
/// `None`: this system has no such command.
pub fn allow(port: u16) -> Option<String> {
    let file = "/etc/sysctl.d/50-adit.conf";
    let setting = format!("net.ipv4.ip_unprivileged_port_start={port}");
    cfg!(target_os = "linux").then(|| format!("echo {setting} | sudo tee {file} && sudo sysctl -p {file}"))
}

/// Returns why an address cannot be bound, for people.
pub fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the port is already in use".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        kind => kind.to_string(),
    }
}

/// An address that a configuration asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub key: Key,
    pub asked_by: String,
    /// Another address with the same port. This one is optional then: adit starts even if the machine does not have it.
    pub beside: Option<SocketAddr>,
}

/// Returns the addresses of `config`. An optional address comes after the one that it accompanies.
pub fn wanted(config: &Config) -> Vec<Wanted> {
    let list = |kind, addresses: &[SocketAddr], asked_by: &str| -> Vec<Wanted> {
        let one = |(at, address): (usize, &SocketAddr)| Wanted {
            key: (kind, *address),
            asked_by: asked_by.to_owned(),
            beside: addresses[..at].iter().copied().find(|other| other.port() == address.port()),
        };
        addresses.iter().enumerate().map(one).collect()
    };
    let mut all = list(Kind::Http, &config.http.listen, "http.listen");
    if let Some(proxy) = &config.proxy {
        all.extend(list(Kind::Proxy, &proxy.listen, "proxy.listen"));
    }
    let routes = || {
        config.tcp.routes.iter().map(|(address, route)| {
            let section = if route.destination.jump.is_some() { "jump" } else { "routes" };
            (address, route, format!("tcp.k8s.{section}.{}", address.port()))
        })
    };
    all.extend(routes().map(|(address, _, asked_by)| Wanted { key: (Kind::Tcp, *address), asked_by, beside: None }));
    all.extend(routes().filter_map(|(address, route, asked_by)| {
        Some(Wanted { key: (Kind::Tcp, route.also?), asked_by, beside: Some(*address) })
    }));
    if let Some(sni) = &config.sni {
        all.extend(list(Kind::Sni, &sni.listen, "sni.listen"));
    }
    all.extend(list(Kind::Admin, config.admin.listen.as_slice(), "admin.listen"));
    all
}

/// Bound sockets that do not accept yet.
#[derive(Default)]
pub struct Sockets {
    pub bound: Vec<(Key, TcpListener)>,
    /// Addresses that the machine does not have yet, such as that of a VPN.
    pub missing: Vec<Key>,
}

impl Sockets {
    /// Binds all addresses of `wanted`, or none. Uses inherited sockets as they are. `serving`: returns the local
    /// address of a listener that already serves.
    ///
    /// # Errors
    /// An address cannot be listened on: another program has it, or the user may not.
    pub fn bind(
        wanted: &[Wanted],
        inherited: &Inherited,
        serving: impl Fn(&Key) -> Option<SocketAddr>,
    ) -> Result<Self, BindError> {
        let mut sockets = Self::default();
        for Wanted { key, asked_by, beside } in wanted {
            let (kind, mut address) = *key;
            if let Some(first) = beside.map(|first| (kind, first)) {
                // Port 0 is chosen once, so that both loopback addresses get the same port.
                let local = sockets.local(&first).or_else(|| serving(&first));
                address.set_port(local.map_or(address.port(), |local| local.port()));
            }
            match inherited.listener(address).unwrap_or_else(|| listen(address)) {
                Ok(listener) => sockets.bound.push((*key, listener)),
                Err(error) if beside.is_some() && error.kind() != io::ErrorKind::AddrInUse => {
                    // adit adds `[::1]` and `[::]` itself, also on machines without IPv6.
                    if let IpAddr::V6(Ipv6Addr::LOCALHOST | Ipv6Addr::UNSPECIFIED) = address.ip() {
                        debug!(%address, %error, "not listening there");
                        continue;
                    }
                    let reason = reason(&error);
                    warn!(%address, asked_by, reason, "not listening there yet: trying again each second");
                    sockets.missing.push((kind, address));
                }
                Err(source) => return Err(BindError { kind, address, asked_by: asked_by.clone(), source }),
            }
        }
        Ok(sockets)
    }

    fn local(&self, key: &Key) -> Option<SocketAddr> {
        let (_, listener) = self.bound.iter().find(|(other, _)| other == key)?;
        listener.local_addr().ok()
    }

    /// Returns the local addresses of the sockets of one kind.
    pub fn addresses(&self, kind: Kind) -> Vec<SocketAddr> {
        let of_kind = self.bound.iter().filter(|((other, _), _)| *other == kind);
        of_kind.filter_map(|(_, listener)| listener.local_addr().ok()).collect()
    }
}

/// Listens on an address. On macOS, ordinary users can bind ports below 1024 only on all addresses. adit then does that
/// for a loopback address, and [`takes`] rejects all peers from elsewhere.
///
/// # Errors
/// The address is in use, or the user may not listen there.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match accept::listen(address) {
        Err(error)
            if error.kind() == io::ErrorKind::PermissionDenied
                && cfg!(target_os = "macos")
                && address.ip().is_loopback() =>
        {
            accept::listen(SocketAddr::new(every_address(address), address.port()))
        }
        listener => listener,
    }
}

fn every_address(address: SocketAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Returns whether a listener for an address accepts a peer. A loopback listener accepts only loopback peers, wherever
/// its socket is bound.
pub fn takes(configured: SocketAddr, peer: SocketAddr) -> bool {
    !configured.ip().is_loopback() || peer.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::validate::parse;

    fn bind(text: &str) -> Result<Sockets, BindError> {
        Sockets::bind(&wanted(&parse(Path::new("c"), text.as_bytes()).unwrap()), &Inherited::default(), |_| None)
    }

    #[tokio::test]
    async fn each_listener_has_one_port_on_both_loopbacks() {
        let sockets = bind("http: {listen: \"127.0.0.1:0\"}\nsni: {listen: \"127.0.0.1:0\"}\n").unwrap();
        let [http, sni] = [Kind::Http, Kind::Sni].map(|kind| sockets.addresses(kind));
        for pair in [&http, &sni] {
            assert_eq!((pair.len(), pair[0].port()), (2, pair[1].port()));
        }
        assert_ne!(http[0].port(), sni[0].port());
    }

    #[tokio::test]
    async fn several_addresses_have_their_own_ports() {
        // TEST-NET-1 (RFC 5737) is on no machine.
        let sockets = bind("http: {listen: [\"127.0.0.1:0\", \"192.0.2.1:0\"]}\n").unwrap();
        let port = sockets.addresses(Kind::Http)[0].port();
        assert_eq!(sockets.missing, [(Kind::Http, SocketAddr::from(([192, 0, 2, 1], port)))]);
        let sockets = bind("http: {listen: [\"127.0.0.1:0\", \"127.0.0.2:0\"]}\n");
        // The second address gets the port of the first, because both are 0 in the file.
        assert!(sockets.is_ok_and(|sockets| sockets.addresses(Kind::Http).len() >= 2));
        let config = parse(Path::new("c"), b"http: {listen: [\":80\", \":443\"]}\n").unwrap();
        let all = wanted(&config);
        let beside = all.iter().map(|wanted| (wanted.key.1.port(), wanted.beside.map(|other| other.port())));
        assert_eq!(beside.collect::<Vec<_>>(), [(80, None), (80, Some(80)), (443, None), (443, Some(443))]);
        for text in ["[\":80\", \"127.0.0.1:80\"]", "[]", "[{}]"] {
            assert!(parse(Path::new("c"), format!("http: {{listen: {text}}}\n").as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_listener_for_loopback_has_no_peer_from_elsewhere() {
        for (configured, peer, is_taken) in [
            ("127.0.0.1:80", "127.0.0.1:5", true),
            ("127.0.0.1:80", "127.0.0.9:5", true),
            ("127.0.0.1:80", "192.168.1.5:5", false),
            ("[::1]:80", "[::1]:5", true),
            ("[::1]:80", "[::ffff:127.0.0.1]:5", true),
            ("[::1]:80", "[fe80::1]:5", false),
            ("0.0.0.0:80", "192.168.1.5:5", true),
            ("192.168.1.1:80", "192.168.1.5:5", true),
        ] {
            assert_eq!(takes(configured.parse().unwrap(), peer.parse().unwrap()), is_taken, "{configured} {peer}");
        }
    }

    #[test]
    fn what_lets_users_have_a_low_port_is_one_command() {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = BindError {
            kind: Kind::Http,
            address: "127.0.0.1:80".parse().unwrap(),
            asked_by: "http.listen".into(),
            source,
        };
        let hint = error.hint().unwrap();
        assert!(hint.starts_with("ports below 1024 need permission: set http.listen to a higher one"), "{hint}");
        let setting = "net.ipv4.ip_unprivileged_port_start=80 | sudo tee";
        assert_eq!(hint.contains(setting), cfg!(target_os = "linux"), "{hint}");
    }

    #[tokio::test]
    async fn a_busy_port_names_the_key_that_asks_for_it() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let jump = "{via: {pod: a}, target: {host: b, port: 1}}";
        for (config, key) in [
            (format!("http: {{listen: \"127.0.0.1:{port}\"}}"), "http.listen".to_owned()),
            (format!("tcp: {{k8s: {{routes: {{{port}: {{service: a}}}}}}}}"), format!("tcp.k8s.routes.{port}")),
            (format!("tcp: {{k8s: {{jump: {{{port}: {jump}}}}}}}"), format!("tcp.k8s.jump.{port}")),
            (format!("sni: {{listen: \"127.0.0.1:{port}\"}}"), "sni.listen".to_owned()),
            (format!("admin: {{listen: \"127.0.0.1:{port}\"}}"), "admin.listen".to_owned()),
        ] {
            let config =
                if key == "http.listen" { config } else { format!("http: {{listen: \"127.0.0.1:0\"}}\n{config}") };
            let error = bind(&config).err().unwrap();
            assert_eq!(error.to_string(), format!("cannot listen on 127.0.0.1:{port}: the port is already in use"));
            let hint = error.hint().unwrap();
            assert!(hint.contains(&key) && (key == "http.listen" || !hint.contains("http.listen")), "{hint}");
        }
    }
}
