//! The addresses that keys claim: two listeners cannot share one.

use super::*;
use crate::config::listen::overlap;

impl Walk {
    /// Records that `owner` listens on `addresses`. Reports a problem if another key has claimed one of them.
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

    /// Drops `[::1]` from routes that only get it by default, if a key claims it. Call it after all keys have made their claims.
    pub(super) fn settle_second_addresses(&self, config: &mut Config) {
        for route in config.tcp.routes.values_mut() {
            route.also = route.also.filter(|also| !self.claimed.iter().any(|(other, _)| overlap(*other, *also)));
        }
    }
}

/// The value of a route's `listen`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum ListenIp {
    /// 127.0.0.1 and `[::1]`: for `localhost`, some clients try one of them first, and some the other.
    #[default]
    Loopback,
    Given(IpAddr),
}

impl ListenIp {
    /// Returns the first address of a route's listener, and the second one.
    pub(super) fn on(self, port: u16) -> (SocketAddr, Option<SocketAddr>) {
        match self {
            Self::Given(ip) => (SocketAddr::new(ip, port), None),
            Self::Loopback => {
                (SocketAddr::from((Ipv4Addr::LOCALHOST, port)), Some(SocketAddr::from((Ipv6Addr::LOCALHOST, port))))
            }
        }
    }
}
