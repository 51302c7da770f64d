//! Public ports of a relay.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
};

use tokio::net::TcpListener;

use super::{
    auth::Key,
    reservations::{Public, Reservations, Reserved},
};
use crate::{io::accept, random, wire::relay::Token};

/// How many ports to try before the error that none is free.
const TRIES: usize = 256;

/// Reasons why a port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("the key may not have port {0}")]
    NotAllowed(u16),
    #[error("port {port} is outside of the relay's public ports, {} to {}", .range.start(), .range.end())]
    OutsideRange { port: u16, range: RangeInclusive<u16> },
    #[error("port {0} is in use")]
    Taken(u16),
    #[error(transparent)]
    Reserved(#[from] Reserved),
    #[error("no port from {first} to {last} is free", first = .0.start(), last = .0.end())]
    NoneFree(RangeInclusive<u16>),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Assigns public ports: a requested one, a random one in the range, or for a returning client the one that its key had.
pub struct Ports {
    bind: IpAddr,
    range: RangeInclusive<u16>,
}

impl Ports {
    pub fn new(bind: IpAddr, range: RangeInclusive<u16>) -> Self {
        Self { bind, range }
    }

    /// Listens on the port of the `resume` token, else on the requested port, else on a random one.
    ///
    /// # Errors
    /// The port is outside of the range or in use, or no port is free.
    pub fn open(
        &self,
        key: &Key,
        wanted: u16,
        resume: &Token,
        book: &mut Reservations,
    ) -> Result<(Arc<TcpListener>, u16), PortError> {
        let wanted = book.port_of(&key.name, resume).unwrap_or(wanted);
        if wanted != 0 {
            if !key.allows_port(wanted) {
                return Err(PortError::NotAllowed(wanted));
            }
            if key.ports.is_empty() && !self.range.contains(&wanted) {
                return Err(PortError::OutsideRange { port: wanted, range: self.range.clone() });
            }
            book.check(&Public::Port(wanted), &key.name)?;
            // Reuses the old listener: visitors that came meanwhile are in its accept queue.
            let listener = book.listener(wanted).map_or_else(|| self.listen(wanted), Ok);
            return match listener {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(PortError::Taken(wanted)),
                listener => {
                    let listener = listener?;
                    book.end(&Public::Port(wanted));
                    Ok((listener, wanted))
                }
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
        let start = u64::from_be_bytes(random::bytes()?) as usize;
        for offset in 0..TRIES.min(all) {
            // 7919 is a prime. The tried ports are spread over the range, and are distinct unless its size is a multiple
            // of 7919.
            let Some(port) = nth(start.wrapping_add(offset.wrapping_mul(7919))) else { break };
            if book.is_kept(&Public::Port(port)) {
                continue;
            }
            if let Ok(listener) = self.listen(port) {
                return Ok((listener, port));
            }
        }
        // A lost client of the same key has less use for its port.
        while let Some(port) = book.oldest_port(&key.name, |port| ranges.iter().any(|range| range.contains(&port))) {
            let listener = book.listener(port).map_or_else(|| self.listen(port), Ok);
            book.end(&Public::Port(port));
            if let Ok(listener) = listener {
                return Ok((listener, port));
            }
        }
        Err(PortError::NoneFree(ranges[0].clone()))
    }

    fn listen(&self, port: u16) -> io::Result<Arc<TcpListener>> {
        accept::listen_dual(SocketAddr::new(self.bind, port)).map(Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::reservations::RESERVED_FOR;

    fn key(ports: Vec<RangeInclusive<u16>>) -> Key {
        Key { name: "k".into(), secret: "s".into(), ports, names: Vec::new(), services: Vec::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn ports_are_wanted_given_and_kept() {
        let (ports, mut book) = (Ports::new("127.0.0.1".parse().unwrap(), 24_100..=24_102), Reservations::default());
        let (any, none) = (key(Vec::new()), [0; 16]);
        let other = Key { name: "other".into(), ..any.clone() };
        let open: Vec<_> = (0..3).map(|_| ports.open(&any, 0, &none, &mut book).unwrap()).collect();
        assert!(matches!(ports.open(&any, 0, &none, &mut book), Err(PortError::NoneFree(_))));
        assert!(matches!(ports.open(&any, 24_101, &none, &mut book), Err(PortError::Taken(24_101))));
        assert!(matches!(ports.open(&any, 80, &none, &mut book), Err(PortError::OutsideRange { port: 80, .. })));
        assert!(matches!(ports.open(&key(vec![1..=2]), 24_101, &none, &mut book), Err(PortError::NotAllowed(24_101))));
        drop(open);
        // A client is lost: its port is reserved, and others get the rest.
        book.keep(Public::Port(24_101), "k", [1; 16], None);
        assert!(matches!(ports.open(&other, 24_101, &none, &mut book), Err(PortError::Reserved(_))));
        let others: Vec<_> = (0..2).map(|_| ports.open(&any, 0, &none, &mut book).unwrap().1).collect();
        assert!(!others.contains(&24_101));
        // Its key gets the port back, with the resume token or without: a killed client has lost the token.
        assert_eq!(ports.open(&any, 0, &[1; 16], &mut book).unwrap().1, 24_101);
        book.keep(Public::Port(24_101), "k", [1; 16], None);
        assert_eq!(ports.open(&any, 24_101, &none, &mut book).unwrap().1, 24_101);
        book.keep(Public::Port(24_102), "k", [2; 16], None);
        tokio::time::advance(RESERVED_FOR).await;
        assert_eq!(ports.open(&other, 24_102, &none, &mut book).unwrap().1, 24_102);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_gets_its_oldest_reserved_port_before_there_is_none() {
        let (ports, mut book) = (Ports::new("127.0.0.1".parse().unwrap(), 24_110..=24_112), Reservations::default());
        let (lost, none) = (key(Vec::new()), [0; 16]);
        let other = Key { name: "other".into(), ..lost.clone() };
        for port in [24_111, 24_110, 24_112] {
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
            book.keep(Public::Port(port), "k", [port as u8; 16], None);
        }
        assert!(matches!(ports.open(&other, 0, &none, &mut book), Err(PortError::NoneFree(_))));
        let open: Vec<_> = (0..3).map(|_| ports.open(&lost, 0, &none, &mut book).unwrap()).collect();
        assert_eq!(open.iter().map(|(_, port)| *port).collect::<Vec<_>>(), [24_111, 24_110, 24_112]);
        assert!(matches!(ports.open(&lost, 0, &none, &mut book), Err(PortError::NoneFree(_))));
    }
}
