//! The pool of local ports for commands.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use socket2::{Domain, Socket, Type};

use crate::config::PortRange;

/// A pool that lends each port to one command at a time.
#[derive(Default)]
pub struct PortPool(Mutex<Lending>);

#[derive(Default)]
struct Lending {
    lent: BTreeSet<u16>,
    /// Last port lent. Ports are lent in turn, so that a returned port rests.
    last: Option<u16>,
}

/// A port on loan until it is dropped.
pub struct Lent {
    number: u16,
    pool: Arc<PortPool>,
}

impl Lent {
    pub fn number(&self) -> u16 {
        self.number
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.0.lock().expect("no panic while the lock is held").lent.remove(&self.number);
    }
}

impl PortPool {
    /// Returns a free port of the range. `None`: no port is free.
    pub fn take(self: &Arc<Self>, range: PortRange) -> Option<Lent> {
        let (first, last) = (range.first(), range.last());
        let mut lending = self.0.lock().expect("no panic while the lock is held");
        let after = match lending.last {
            Some(before) if (first..last).contains(&before) => before + 1,
            Some(_) => first,
            // At random: a command of another adit could take the same port before this one listens there.
            None => first + (RandomState::new().hash_one(first) % (u64::from(last - first) + 1)) as u16,
        };
        let number = (after..=last).chain(first..after).find(|port| !lending.lent.contains(port) && is_free(*port))?;
        lending.lent.insert(number);
        lending.last = Some(number);
        Some(Lent { number, pool: self.clone() })
    }
}

/// Loopback addresses at which a command may listen; adit connects to the first one first.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

fn is_free(port: u16) -> bool {
    LOOPBACK.iter().all(|ip| is_free_at(*ip, port))
}

/// Returns whether a port is free at a loopback address. A machine without IPv6 has no listener there.
fn is_free_at(ip: IpAddr, port: u16) -> bool {
    let address = SocketAddr::new(ip, port);
    let bound = Socket::new(Domain::for_address(address), Type::STREAM, None).and_then(|socket| {
        // On Linux, for ports whose last connections are in TIME_WAIT. On macOS and BSD, this would allow 127.0.0.1 beside the
        // listener of another program at all addresses.
        socket.set_reuse_address(cfg!(target_os = "linux"))?;
        socket.bind(&address.into())?;
        socket.listen(1)
    });
    bound.map_or_else(|error| ip.is_ipv6() && error.kind() != io::ErrorKind::AddrInUse, |_| true)
}

/// Returns the loopback addresses at which a process listens on a port. Does not connect to it.
#[cfg(target_os = "linux")]
pub fn listening(port: u16) -> Vec<IpAddr> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    of_tables(&[read("/proc/self/net/tcp"), read("/proc/self/net/tcp6")], port)
}

/// Parses tables of proc_pid_net(5): number, local address:port, remote address:port, state; hexadecimal. State 0A is LISTEN. An
/// address consists of 32-bit words, each in the machine's byte order.
#[cfg(target_os = "linux")]
fn of_tables(tables: &[String], port: u16) -> Vec<IpAddr> {
    let listeners = tables.iter().flat_map(|table| table.lines().skip(1)).filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (ip, local) = words.next()?.split_once(':')?;
        (words.nth(1)? == "0A" && u16::from_str_radix(local, 16) == Ok(port)).then(|| address(ip)).flatten()
    });
    let listeners: Vec<IpAddr> = listeners.collect();
    // A listener on `::` accepts IPv4 too, unless it is IPv6-only, which the tables do not show.
    let is_at = |ip: &IpAddr| {
        listeners.iter().any(|listener| match listener {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => true,
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => ip.is_ipv4(),
            listener => listener == ip,
        })
    };
    LOOPBACK.into_iter().filter(is_at).collect()
}

#[cfg(target_os = "linux")]
fn address(hexadecimal: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hexadecimal.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    match hexadecimal.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let octets: [u8; 16] = words.concat().try_into().ok()?;
            Some(IpAddr::V6(octets.into()).to_canonical())
        }
        _ => None,
    }
}

/// Returns the loopback addresses at which a process listens on a port: those that adit cannot bind. Does not connect to it.
#[cfg(not(target_os = "linux"))]
pub fn listening(port: u16) -> Vec<IpAddr> {
    LOOPBACK.into_iter().filter(|ip| !is_free_at(*ip, port)).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn two_pools_begin_at_different_ports() {
        let range = "21900-21909".parse().unwrap();
        let first = || Arc::<PortPool>::default().take(range).map(|lent| lent.number());
        assert!((0..200).map(|_| first()).collect::<BTreeSet<_>>().len() > 1);
    }

    /// Retries, because a process that another test spawns holds a copy of each socket until its exec.
    fn eventually(condition: impl Fn() -> bool) -> bool {
        (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            condition()
        })
    }

    #[test]
    fn a_port_is_lent_once_and_rests_when_it_is_back() {
        let pool = Arc::<PortPool>::default();
        let range = "21900-21902".parse().unwrap();
        let taken: Vec<_> = std::iter::from_fn(|| pool.take(range)).collect();
        let numbers: BTreeSet<u16> = taken.iter().map(Lent::number).collect();
        assert_eq!(numbers.len(), taken.len());
        assert!(!taken.is_empty() && pool.take(range).is_none());
        let first = taken[0].number();
        drop(taken);
        assert!(eventually(|| pool.take(format!("{first}-{first}").parse().unwrap()).is_some()));
    }

    #[test]
    fn a_listener_is_seen_from_outside() {
        // Outside the ephemeral range, so that no other process gets it when it is free.
        let lent = Arc::<PortPool>::default().take("21910-21949".parse().unwrap()).unwrap();
        let port = lent.number();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert_eq!(listening(port), [Ipv4Addr::LOCALHOST]);
        drop(listener);
        assert!(eventually(|| listening(port).is_empty()));
    }

    #[test]
    fn a_port_that_another_program_has_at_either_loopback_address_is_not_lent() {
        let Ok(other) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else { return };
        let port = other.local_addr().unwrap().port();
        assert!(Arc::<PortPool>::default().take(format!("{port}-{port}").parse().unwrap()).is_none());
        assert_eq!(listening(port), [Ipv6Addr::LOCALHOST]);
    }

    #[cfg(all(target_os = "linux", target_endian = "little"))]
    #[test]
    fn only_listeners_that_a_loopback_address_reaches_count() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n";
        let at = |address: &str, state: &str| {
            let remote = "0".repeat(address.len());
            of_tables(
                &[format!("{head}   0: {address}:5478 {remote}:0000 {state} 00000000:00000000 00:00000000\n")],
                0x5478,
            )
        };
        let mapped = "0000000000000000FFFF00000100007F";
        for address in ["0100007F", "00000000", mapped] {
            assert_eq!(at(address, "0A"), [Ipv4Addr::LOCALHOST], "{address}");
        }
        assert_eq!(at("00000000000000000000000001000000", "0A"), [Ipv6Addr::LOCALHOST]);
        assert_eq!(at("00000000000000000000000000000000", "0A"), LOOPBACK);
        for (address, state) in [("0200007F", "0A"), ("0100007F", "01"), ("4601580A", "0A")] {
            assert!(at(address, state).is_empty(), "{address} {state}");
        }
    }
}
