//! Addresses of listeners.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::defaults::loopback;

/// Parses `127.0.0.1:8989`; `8989` and `localhost:8989`, for loopback; `:8989`, in Go's notation, for every address of the machine.
///
/// # Errors
/// Returns a description of a valid text, for messages: `an address with a port`.
pub fn parse(text: &str) -> Result<Vec<SocketAddr>, &'static str> {
    let is_address = || text == "localhost" || text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let (host, port) = match text.rsplit_once(':') {
        _ if is_address() => return Err("an address with a port"),
        Some(parts) => parts,
        None => ("localhost", text),
    };
    let port = port.parse::<u16>().map_err(|_| "an address with a port from 0 to 65535")?;
    if host.is_empty() {
        return Ok(vec![(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(loopback(port));
    }
    match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        // Browsers try `[::1]` first for names below localhost.
        Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)) => Ok(loopback(port)),
        Ok(ip) => Ok(vec![SocketAddr::new(ip, port)]),
        Err(_) => Err("an IP address and a port"),
    }
}

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
    fn one_grammar_for_the_option_and_the_file() {
        for (text, addresses) in [
            ("8080", "127.0.0.1:8080 [::1]:8080"),
            ("127.0.0.1:1", "127.0.0.1:1 [::1]:1"),
            ("localhost:1", "127.0.0.1:1 [::1]:1"),
            (":28989", "0.0.0.0:28989 [::]:28989"),
            ("0.0.0.0:1", "0.0.0.0:1"),
            ("[::1]:0", "[::1]:0"),
        ] {
            let found: Vec<String> = parse(text).unwrap().iter().map(ToString::to_string).collect();
            assert_eq!(found.join(" "), addresses, "{text}");
        }
        for (text, wanted) in [
            ("127.0.0.1", "an address with a port"),
            ("::1", "an address with a port"),
            ("localhost", "an address with a port"),
            ("nowhere", "an address with a port from 0 to 65535"),
            ("127.0.0.1:70000", "an address with a port from 0 to 65535"),
            ("nowhere:80", "an IP address and a port"),
            ("", "an address with a port from 0 to 65535"),
        ] {
            assert_eq!(parse(text), Err(wanted), "{text}");
        }
    }

    #[test]
    fn addresses_overlap_within_a_family() {
        let overlap = |a: &str, b: &str| overlap(a.parse().unwrap(), b.parse().unwrap());
        assert!(overlap("127.0.0.1:80", "127.0.0.1:80") && overlap("127.0.0.1:80", "0.0.0.0:80"));
        assert!(overlap("[::]:80", "[::1]:80"));
        assert!(!overlap("127.0.0.1:80", "127.0.0.1:81") && !overlap("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!overlap("127.0.0.1:80", "[::]:80") && !overlap("127.0.0.1:0", "127.0.0.1:0"));
    }
}
