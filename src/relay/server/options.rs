//! Options of a relay.

use std::{net::IpAddr, ops::RangeInclusive, str::FromStr, sync::Arc};

use crate::{
    io::accept,
    relay::{auth::Key, expose::Exposer},
};

/// Scheme and port of public addresses, for example those of a load balancer. Its text is `SCHEME[:PORT]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicOrigin {
    pub is_https: bool,
    /// `None`: the default port of the scheme.
    pub port: Option<u16>,
}

impl PublicOrigin {
    pub fn new(is_https: bool, port: Option<u16>) -> Self {
        let default = if is_https { 443 } else { 80 };
        Self { is_https, port: port.filter(|port| *port != default) }
    }
}

impl FromStr for PublicOrigin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, port) = text.split_once(':').map_or((text, None), |(scheme, port)| (scheme, Some(port)));
        let port = port.map(|port| port.parse().ok().filter(|port| *port != 0).ok_or("the port is not in 1-65535"));
        match scheme {
            "http" | "https" => Ok(Self::new(scheme == "https", port.transpose()?)),
            _ => Err("expected http or https, and :PORT if it is not the default port"),
        }
    }
}

/// Options of a relay.
#[derive(Clone)]
pub struct Options {
    pub keys: Vec<Key>,
    /// Public ports.
    pub ports: RangeInclusive<u16>,
    /// Address that public ports bind to.
    pub bind: IpAddr,
    /// Domain above the names of HTTP tunnels.
    pub domain: Option<String>,
    /// Scheme and port in the public addresses of HTTP tunnels.
    pub http_public: PublicOrigin,
    /// Serves version 1 too, in which the secret and all bytes cross the network in the clear.
    pub allow_v1: bool,
    pub limits: Limits,
    /// Takes over Services of the cluster. `None`: the relay takes over nothing.
    pub exposer: Option<Arc<Exposer>>,
}

/// Limits per client and per visitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of tunnels per key. Default: 64.
    pub tunnels_per_key: usize,
    /// Maximum number of streams per tunnel. Default: 1,024.
    pub streams_per_tunnel: usize,
    /// Visitors per tunnel that may wait for a new connection of the client at a time; others queue behind them. Default:
    /// 256.
    pub pending_per_tunnel: usize,
    /// Maximum number of connections before authentication. Default: 512.
    pub handshakes: usize,
    /// Maximum number of new visitors per second and tunnel. Default: 2,000.
    pub visitors_per_second: u32,
    /// Limits and timeouts of visitors' connections. The timeouts apply to clients' connections too.
    pub accepted: accept::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            tunnels_per_key: 64,
            streams_per_tunnel: 1024,
            pending_per_tunnel: 256,
            handshakes: 512,
            visitors_per_second: 2000,
            accepted: accept::Limits::of_relay(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_port_is_not_said() {
        let of = |text: &str| text.parse::<PublicOrigin>().map(|PublicOrigin { is_https, port }| (is_https, port));
        assert_eq!(
            (of("http"), of("https:443"), of("http:443")),
            (Ok((false, None)), Ok((true, None)), Ok((false, Some(443))))
        );
        assert!(of("ftp").is_err() && of("http:0").is_err() && of("https://a").is_err());
    }
}
