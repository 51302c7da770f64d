//! Addresses by the key that claims them: two listeners cannot share one.

use super::*;
use crate::config::listen::overlap;

impl Walk {
    /// Notes that `owner` listens on `addresses`. It is a problem where another key does already.
    pub(super) fn claim(&mut self, addresses: &[SocketAddr], place: Place, owner: &str) {
        for address in addresses {
            match self.claimed.iter().find(|(other, _)| overlap(*other, *address)) {
                Some((_, other)) => {
                    let message = format!("port {} is used by {other} already", address.port());
                    return self.problem(place, &message, Some("choose another local port"));
                }
                None => self.claimed.push((*address, owner.to_owned())),
            }
        }
    }

    /// Leaves `[::1]` to a key that names it. To be called when all keys have claimed what they name.
    pub(super) fn settle_second_addresses(&self, config: &mut Config) {
        for route in config.tcp.routes.values_mut() {
            route.also = route.also.filter(|also| !self.claimed.iter().any(|(other, _)| overlap(*other, *also)));
        }
    }
}

/// The value of a route's `listen`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum ListenIp {
    /// 127.0.0.1 and `[::1]`: clients try either of them first for `localhost`.
    #[default]
    Loopback,
    Given(IpAddr),
}

impl ListenIp {
    /// Returns the address that a route is known by, and the one beside it.
    pub(super) fn on(self, port: u16) -> (SocketAddr, Option<SocketAddr>) {
        match self {
            Self::Given(ip) => (SocketAddr::new(ip, port), None),
            Self::Loopback => {
                (SocketAddr::from((Ipv4Addr::LOCALHOST, port)), Some(SocketAddr::from((Ipv6Addr::LOCALHOST, port))))
            }
        }
    }
}
