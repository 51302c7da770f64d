//! The public ports of a relay.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use tokio::{
    net::TcpListener,
    time::{Duration, Instant},
};

use super::auth::{self, Key};
use crate::{io::accept, wire::relay::Token};

/// For how long a port, or a name, waits for a client that was lost.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// How many ports are tried before it is said that none is free.
const TRIES: usize = 256;

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("the key may not have port {0}")]
    NotAllowed(u16),
    #[error("port {0} is not free")]
    Taken(u16),
    #[error("no port from {first} to {last} is free", first = .0.start(), last = .0.end())]
    NoneFree(RangeInclusive<u16>),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Lends public ports: random ones in a range, wanted ones, and again to whom had them before.
pub struct Ports {
    bind: IpAddr,
    range: RangeInclusive<u16>,
    /// Of clients that were lost, by what they were given.
    remembered: HashMap<Token, (u16, Instant)>,
}

impl Ports {
    pub fn new(bind: IpAddr, range: RangeInclusive<u16>) -> Self {
        Self { bind, range, remembered: HashMap::new() }
    }

    /// Listens on the port that `resume` stands for, else the wanted one, else a random one.
    pub fn open(&mut self, key: &Key, wanted: u16, resume: &Token) -> Result<(TcpListener, u16), PortError> {
        let now = Instant::now();
        self.remembered.retain(|_, (_, until)| *until > now);
        let wanted = self.remembered.remove(resume).map_or(wanted, |(port, _)| port);
        if wanted != 0 {
            if !key.allows_port(wanted) || (key.ports.is_empty() && !self.range.contains(&wanted)) {
                return Err(PortError::NotAllowed(wanted));
            }
            if self.is_kept(wanted) {
                return Err(PortError::Taken(wanted));
            }
            return match self.listen(wanted) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(PortError::Taken(wanted)),
                listener => Ok((listener?, wanted)),
            };
        }
        let ranges = if key.ports.is_empty() { vec![self.range.clone()] } else { key.ports.clone() };
        let all: usize = ranges.iter().map(|range| range.len()).sum();
        let nth = |at: usize| {
            let mut at = at % all.max(1);
            ranges.iter().find_map(|range| match at.checked_sub(range.len()) {
                None => Some(range.start() + at as u16),
                Some(rest) => {
                    at = rest;
                    None
                }
            })
        };
        let start = u64::from_be_bytes(auth::random()?) as usize;
        for offset in 0..TRIES.min(all) {
            // 7919 is a prime: the ports tried are spread over the range, and no two are the same where it is no multiple.
            let Some(port) = nth(start.wrapping_add(offset.wrapping_mul(7919))) else { break };
            if self.is_kept(port) {
                continue;
            }
            if let Ok(listener) = self.listen(port) {
                return Ok((listener, port));
            }
        }
        Err(PortError::NoneFree(ranges[0].clone()))
    }

    /// Keeps a port for the client that was lost.
    pub fn remember(&mut self, resume: Token, port: u16) {
        self.remembered.insert(resume, (port, Instant::now() + REMEMBERED));
    }

    fn is_kept(&self, port: u16) -> bool {
        self.remembered.values().any(|(kept, _)| *kept == port)
    }

    fn listen(&self, port: u16) -> io::Result<TcpListener> {
        accept::listen(SocketAddr::new(self.bind, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ports: Vec<RangeInclusive<u16>>) -> Key {
        Key { name: "k".into(), secret: "s".into(), ports, names: Vec::new(), services: Vec::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn ports_are_wanted_given_and_kept() {
        let mut ports = Ports::new("127.0.0.1".parse().unwrap(), 24_100..=24_102);
        let (any, none) = (key(Vec::new()), [0; 16]);
        let open: Vec<_> = (0..3).map(|_| ports.open(&any, 0, &none).unwrap()).collect();
        assert!(matches!(ports.open(&any, 0, &none), Err(PortError::NoneFree(_))));
        assert!(matches!(ports.open(&any, 24_101, &none), Err(PortError::Taken(24_101))));
        assert!(matches!(ports.open(&any, 80, &none), Err(PortError::NotAllowed(80))));
        assert!(matches!(ports.open(&key(vec![1..=2]), 24_101, &none), Err(PortError::NotAllowed(24_101))));
        drop(open);
        // A client is lost: its port waits, and others get the rest.
        ports.remember([1; 16], 24_101);
        assert!(matches!(ports.open(&any, 24_101, &none), Err(PortError::Taken(24_101))));
        let others: Vec<_> = (0..2).map(|_| ports.open(&any, 0, &none).unwrap().1).collect();
        assert!(!others.contains(&24_101));
        assert_eq!(ports.open(&any, 0, &[1; 16]).unwrap().1, 24_101);
        ports.remember([2; 16], 24_102);
        tokio::time::advance(REMEMBERED + Duration::from_secs(1)).await;
        assert_eq!(ports.open(&any, 24_102, &none).unwrap().1, 24_102);
    }
}
