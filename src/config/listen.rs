//! Addresses of listeners.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Returns whether a socket on `a` prevents another one on `b`: the same port, and the same address or all addresses of the
/// family. adit's IPv6 sockets accept IPv6 only. Port 0 never overlaps: each bind gets another port.
pub fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.port() != 0
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// Returns the address at which local programs reach a listener: loopback, if it listens on all addresses of its family.
pub fn of_this_machine(listener: SocketAddr) -> SocketAddr {
    let ip = match listener.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listener.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_overlap_within_a_family() {
        let overlap = |a: &str, b: &str| overlap(a.parse().unwrap(), b.parse().unwrap());
        assert!(overlap("127.0.0.1:80", "127.0.0.1:80") && overlap("127.0.0.1:80", "0.0.0.0:80"));
        assert!(overlap("[::]:80", "[::1]:80"));
        assert!(!overlap("127.0.0.1:80", "127.0.0.1:81") && !overlap("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!overlap("127.0.0.1:80", "[::]:80") && !overlap("127.0.0.1:0", "127.0.0.1:0"));
    }
}
