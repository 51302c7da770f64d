//! Routes: the target of a connection, and the options for its requests.

use std::{sync::Arc, time::Duration};

use super::{PodTarget, Target};
use crate::config::{HttpOptions, PortRef, Scheme};

/// Target of a connection, and the options for its requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Name of the route for the user: its key in the file, or the dynamic name.
    pub name: Arc<str>,
    pub target: Target,
    /// The tunnel closes after this long without use. Zero: never.
    pub idle_timeout: Duration,
    /// Options for HTTP requests. TCP routes have the defaults.
    pub options: Arc<HttpOptions>,
}

impl Route {
    /// Returns the route for a client that uses https (`tls`) or plain text. Without a port in the route, https means
    /// the Service's https port. So does `scheme: https`, whatever the client uses.
    pub fn for_client(mut self, tls: bool) -> Self {
        let is_https = match self.options.scheme {
            None => tls,
            Some(scheme) => scheme == Scheme::Https,
        };
        if is_https {
            self.name_port(PortRef::Https);
        }
        self
    }

    /// Returns the route for a client that names a port, if the route names none. 80 is a browser's default, and names no port.
    pub fn for_port(mut self, port: u16) -> Self {
        match port {
            80 => {}
            443 => self.name_port(PortRef::Https),
            port => PortRef::number(port).into_iter().for_each(|port| self.name_port(port)),
        }
        self
    }

    fn name_port(&mut self, port: PortRef) {
        if let Target::Pods(target) = &self.target
            && target.port == PortRef::Auto
            && target.jump.is_none()
        {
            self.target = Target::Pods(Arc::new(PodTarget { port, ..(**target).clone() }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Workload, routing::ClusterId};

    #[test]
    fn https_means_the_https_port_where_none_is_named() {
        let port = |port: PortRef, scheme: Option<Scheme>, tls: bool| {
            let target = PodTarget {
                cluster: ClusterId { kubeconfig: Arc::default(), context: "dev".parse().unwrap() },
                namespace: "shop".parse().unwrap(),
                workload: Workload::Service("web".parse().unwrap()),
                port,
                jump: None,
            };
            let route = Route {
                name: "web.shop.localhost".into(),
                target: Target::Pods(Arc::new(target)),
                idle_timeout: Duration::ZERO,
                options: Arc::new(HttpOptions { scheme, ..HttpOptions::default() }),
            };
            route.for_client(tls).target.pods().unwrap().port.clone()
        };
        for (named, scheme, tls, meant) in [
            (PortRef::Auto, None, true, PortRef::Https),
            (PortRef::Auto, None, false, PortRef::Auto),
            (PortRef::Auto, Some(Scheme::Https), false, PortRef::Https),
            (PortRef::Auto, Some(Scheme::Http), true, PortRef::Auto),
            (PortRef::Auto, Some(Scheme::H2c), true, PortRef::Auto),
            (PortRef::number(80).unwrap(), None, true, PortRef::number(80).unwrap()),
            (PortRef::Name("web".parse().unwrap()), Some(Scheme::Https), true, PortRef::Name("web".parse().unwrap())),
        ] {
            assert_eq!(port(named.clone(), scheme, tls), meant, "{named:?} {scheme:?} {tls}");
        }
    }
}
