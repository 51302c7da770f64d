//! The pool of local ports for commands.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
    sync::{Arc, Mutex},
};

use crate::config::PortRange;

/// A pool that lends each port to one command at a time.
#[derive(Default)]
pub struct PortPool(Mutex<Lending>);

#[derive(Default)]
struct Lending {
    lent: BTreeSet<u16>,
    /// Last port lent. Ports are lent in turn, so that a returned port rests.
    last: u16,
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
        let after = if (first..last).contains(&lending.last) { lending.last + 1 } else { first };
        let number = (after..=last).chain(first..after).find(|port| !lending.lent.contains(port) && is_free(*port))?;
        lending.lent.insert(number);
        lending.last = number;
        Some(Lent { number, pool: self.clone() })
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

/// Returns whether a process listens on a port of this machine. Does not connect to it.
#[cfg(target_os = "linux")]
pub fn is_listened_on(port: u16) -> bool {
    // proc_pid_net(5): number, local address:port, remote address:port, state; hexadecimal. 0A is LISTEN.
    let has = |table: String| {
        table.lines().skip(1).any(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            let (local, state) = (words.next(), words.nth(1));
            let local = local.and_then(|local| u16::from_str_radix(local.rsplit(':').next()?, 16).ok());
            local == Some(port) && state == Some("0A")
        })
    };
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"].iter().any(|path| std::fs::read_to_string(path).is_ok_and(has))
}

/// Returns whether a process listens on a port of this machine. Does not connect to it, but tries to bind it.
#[cfg(not(target_os = "linux"))]
pub fn is_listened_on(port: u16) -> bool {
    !is_free(port)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(is_listened_on(port));
        drop(listener);
        assert!(eventually(|| !is_listened_on(port)));
    }
}
