//! Finds the process that listens on a port.

use std::net::{IpAddr, SocketAddr};

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub pid: u32,
    pub name: String,
}

/// Returns the process that listens on an address. `None`: the system does not show it, for example because it belongs to another
/// user.
#[cfg(target_os = "linux")]
pub fn owner(address: SocketAddr) -> Option<Owner> {
    use std::fs;
    let found: Vec<(IpAddr, String)> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening(&table, address.port()))
        .collect();
    let is_exact = found.iter().any(|(ip, _)| *ip == address.ip());
    let is_in_the_way = |ip: IpAddr| if is_exact { ip == address.ip() } else { overlap(ip, address.ip()) };
    let inodes = found.iter().filter(|(ip, _)| is_in_the_way(*ip));
    let inodes: Vec<String> = inodes.map(|(_, inode)| format!("socket:[{inode}]")).collect();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let has_it = |file: fs::DirEntry| {
            fs::read_link(file.path()).is_ok_and(|link| inodes.iter().any(|inode| *inode == link.to_string_lossy()))
        };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        if files.flatten().any(has_it) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(Owner { pid, name: name.trim().to_owned() });
        }
    }
    None
}

#[cfg(not(target_os = "linux"))]
pub fn owner(_: SocketAddr) -> Option<Owner> {
    None
}

/// Returns whether a listener on one address is in the way of one on another, with the same port. `::` may take IPv4 too.
#[cfg(target_os = "linux")]
fn overlap(one: IpAddr, other: IpAddr) -> bool {
    let covers = |all: IpAddr, ip: IpAddr| all.is_unspecified() && (all.is_ipv6() || ip.is_ipv4());
    one == other || covers(one, other) || covers(other, one)
}

/// Returns address and inode of the sockets that listen on a port (proc(5), /proc/net/tcp; state 0A is LISTEN).
#[cfg(target_os = "linux")]
fn listening(table: &str, port: u16) -> Vec<(IpAddr, String)> {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (ip, local) = fields.get(1)?.rsplit_once(':')?;
        let is_it = u16::from_str_radix(local, 16) == Ok(port) && *fields.get(3)? == "0A";
        is_it.then(|| Some((ip_of(ip)?, (*fields.get(9)?).to_owned()))).flatten()
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

/// Parses an address of these tables: words of four bytes, each in the byte order of this machine.
#[cfg(target_os = "linux")]
fn ip_of(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(IpAddr::from(word(0)?)),
        32 => {
            let bytes: [u8; 16] = [word(0)?, word(1)?, word(2)?, word(3)?].concat().try_into().ok()?;
            Some(IpAddr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = owner(listener.local_addr().unwrap()).unwrap();
        assert_eq!(found.pid, std::process::id());
        let free = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(owner(free), None);
        assert!(listening("head\nshort\n 0: 0100007F:XYZ 00000000:0000 0A", 80).is_empty());
    }

    #[test]
    fn a_listener_on_another_address_is_not_in_the_way() {
        let here = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), here.local_addr().unwrap().port());
        assert_eq!(owner(at("127.0.0.2")), None);
        assert_eq!(owner(at("::1")), None);
        assert_eq!(owner(at("0.0.0.0")).unwrap().pid, std::process::id(), "all addresses include it");
        for (hex, ip) in [("0100007F", "127.0.0.1"), ("00000000000000000000000001000000", "::1")] {
            assert_eq!(ip_of(hex), Some(ip.parse().unwrap()));
        }
        for (one, other, is_in_the_way) in [
            ("0.0.0.0", "127.0.0.1", true),
            ("::", "127.0.0.1", true),
            ("::", "::1", true),
            ("0.0.0.0", "::1", false),
            ("127.0.0.1", "127.0.0.2", false),
        ] {
            let [one, other] = [one, other].map(|ip| ip.parse().unwrap());
            assert_eq!((overlap(one, other), overlap(other, one)), (is_in_the_way, is_in_the_way), "{one} {other}");
        }
    }
}
