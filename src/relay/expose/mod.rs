//! Takeovers: Services of the cluster that route to laptops, through a relay in a pod.
//!
//! | before | during the takeover | at the end |
//! |---|---|---|
//! | no such Service | created, with the requested ports | deleted |
//! | no such Service, and `--replace` | refused | |
//! | a Service, and `--replace` | its port routes to the laptop, all others to the pods | port restored |
//! | a Service without a selector, and `--replace` | the same; the port is removed from its endpoints | endpoints restored |
//! | a Service, and conditions | requests that match one go to that laptop, all others to the pods | port restored |
//! | an ExternalName, a headless Service, endpoints that a controller writes | refused, without any change | |
//!
//! ```text
//! claim    one task per Service: reconciles until the cluster has the wanted state
//!   -> reconcile    one step, from any state
//!        -> service, endpoints    changes of an object, and its original: pure functions
//!        -> lease                 which relay may change the objects
//!        -> kube                  API calls
//!   -> pods    targets of the other requests, if a port is taken over in part
//! condition    requests of a personal takeover
//! authorize, review    permissions of a client: rules of its key, and RBAC
//! sweep    restores Services that dead relays have left
//! ```
//!
//! A relay has no memory of its own. The patch that changes an object also saves its original in the object.

pub mod authorize;
pub mod claim;
pub mod condition;
pub mod endpoints;
mod events;
pub mod inspect;
pub mod kube;
mod lease;
mod pods;
mod reconcile;
pub mod review;
pub mod service;
mod sweep;

use std::{env, fmt, io, net::IpAddr};

use data_encoding::HEXLOWER;
use serde_json::Value;

pub use self::claim::{Claim, ClaimError, ClaimOver, Exposer, PodAddress, Pods};
use self::condition::{Condition, ConditionError};
use crate::random;

/// Maximum length of an invalid name in an error, in characters.
const LONGEST_SHOWN: usize = 200;

/// Label of every object that a relay has created or changed, except endpoints written by hand.
pub const EXPOSED: &str = "adit/exposed";

/// Annotation of a Service that is taken over, and of its Lease: a [`service::Takeover`] as JSON.
pub const TAKEOVER: &str = "adit/takeover";

/// Annotation of endpoints written by hand: their original.
pub const ORIGINAL: &str = "adit/original";

/// Annotation of a relay's slices: the relay.
pub const RELAY: &str = "adit/relay";

/// Label of every object that a relay has created.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Name of a Service: `shop/web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Request of a client to take over a port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExposeRequest {
    pub service: ServiceName,
    /// Port of the Service.
    pub port: u16,
    /// Takes over only the requests that match; all others go to the pods. `None`: all requests.
    pub condition: Option<Condition>,
    /// Whether an existing Service may be taken over.
    pub replaces: bool,
    /// Name of the laptop's user, for messages.
    pub owner: String,
}

/// Reasons why a request is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    #[error("{0:?} is not SERVICE.NAMESPACE:PORT")]
    Name(String),
    #[error(transparent)]
    Condition(#[from] ConditionError),
    #[error("a Service that is created has no pods for the requests that are not yours")]
    Created,
}

impl ExposeRequest {
    /// Parses `service.namespace:port`, optionally followed by a space and a condition as JSON.
    ///
    /// # Errors
    /// Fails if the text is neither.
    pub fn parse(text: &str, replaces: bool, owner: String) -> Result<Self, RequestError> {
        let (name, condition) = match text.split_once(' ') {
            Some((name, condition)) => (name, Some(Condition::parse(condition)?)),
            None => (text, None),
        };
        if condition.is_some() && !replaces {
            return Err(RequestError::Created);
        }
        let read = || {
            let (name, port) = name.rsplit_once(':')?;
            let (name, namespace) = name.split_once('.')?;
            let is_label = crate::config::names::is_label;
            let port = port.parse().ok().filter(|port| *port > 0)?;
            let service = ServiceName { namespace: namespace.to_owned(), name: name.to_owned() };
            (is_label(name) && is_label(namespace)).then_some((service, port))
        };
        let (service, port) = read().ok_or_else(|| RequestError::Name(name.chars().take(LONGEST_SHOWN).collect()))?;
        Ok(Self { service, port, condition, replaces, owner })
    }

    /// Returns the request in the format of [`parse`](Self::parse).
    pub fn name(&self) -> String {
        let Self { service: ServiceName { namespace, name }, port, condition, .. } = self;
        let condition = condition.as_ref().map_or(String::new(), |condition| format!(" {}", condition.to_json()));
        format!("{name}.{namespace}:{port}{condition}")
    }

    /// Returns whether two requests are for the same port and condition.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.service, self.port, &self.condition) == (&other.service, other.port, &other.condition)
    }
}

/// As `web.shop:80`, or `web.shop:80, requests with x-user: anna`.
impl fmt::Display for ExposeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}:{}", self.service.name, self.service.namespace, self.port)?;
        self.condition.as_ref().map_or(Ok(()), |condition| write!(f, ", requests with {condition}"))
    }
}

/// Decides whether a client may take over a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authority {
    /// The rules of the client's key.
    #[default]
    Keys,
    /// The rules of the client's key, and the user's permissions by RBAC.
    Kubernetes,
}

/// Reasons why a relay cannot take over Services in its environment.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error("${0} is not set: the chart sets it (expose.enabled)")]
    Variable(&'static str),
    #[error("$POD_IP: {0:?} is not an address")]
    Address(String),
    #[error("the pod has no address that visitors of '--bind {0}' reach: use '--bind ::'")]
    Unreachable(IpAddr),
    #[error("there is no service account in this pod")]
    NoServiceAccount,
    #[error("the service account of this pod cannot be used")]
    ServiceAccount,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A relay, and the pod that it runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    /// Distinguishes a relay from the one before it in the same pod.
    pub start: String,
    /// Addresses of the relay's pod.
    pub addresses: Vec<IpAddr>,
    /// Node of the pod, if known.
    pub node: Option<String>,
}

/// As `namespace/pod/uid/start`, the form in objects.
impl fmt::Display for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.namespace, self.pod, self.uid, self.start)
    }
}

impl Relay {
    /// Returns the relay of this process from the variables of the downward API. `bind`: the address of its tunnels.
    ///
    /// # Errors
    /// Fails if the variables are missing, as outside a pod.
    pub fn of_this_pod(bind: IpAddr) -> Result<Self, PodError> {
        let variable = |name: &'static str| env::var(name).map_err(|_| PodError::Variable(name));
        let ips = env::var("POD_IPS").or_else(|_| variable("POD_IP"))?;
        let parse = |ip: &str| ip.trim().parse().map_err(|_| PodError::Address(ip.to_owned()));
        let addresses = ips.split(',').map(parse).collect::<Result<Vec<IpAddr>, _>>()?;
        // A socket on 0.0.0.0 accepts no visitors over IPv6.
        let addresses: Vec<IpAddr> = addresses.into_iter().filter(|ip| bind.is_ipv6() || ip.is_ipv4()).collect();
        if addresses.is_empty() {
            return Err(PodError::Unreachable(bind));
        }
        Ok(Self {
            namespace: variable("POD_NAMESPACE")?,
            pod: variable("POD_NAME")?,
            uid: variable("POD_UID")?,
            start: start()?,
            addresses,
            node: env::var("NODE_NAME").ok(),
        })
    }

    /// Parses a relay in an object: namespace, pod, UID and start.
    fn parse(text: &str) -> Option<[&str; 4]> {
        let parts: Vec<&str> = text.split('/').collect();
        parts.try_into().ok()
    }

    /// Returns a relay in an object as text for users: `namespace/pod`.
    fn shown(text: &str) -> String {
        Self::parse(text).map_or_else(|| text.to_owned(), |[namespace, pod, ..]| format!("{namespace}/{pod}"))
    }
}

/// Returns a new value for [`Relay::start`].
///
/// # Errors
/// Fails if the system returns no random numbers.
pub fn start() -> io::Result<String> {
    Ok(HEXLOWER.encode(&random::bytes::<4>()?))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wanted_service_is_named_with_its_namespace_and_port() {
        let parse = |text: &str| ExposeRequest::parse(text, false, "ana".into());
        let wanted = parse("web.shop:80").unwrap();
        assert_eq!((wanted.service.to_string().as_str(), wanted.port), ("shop/web", 80));
        for text in ["web:80", "web.shop", "web.shop:0", "Web.shop:80", "web.sh.op:80", ".shop:80", "web.shop:99999"] {
            assert_eq!(parse(text), Err(RequestError::Name(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_condition_follows_the_name_and_is_never_wider_than_it_was_meant() {
        let parse = |text: &str| ExposeRequest::parse(text, true, "ana".into());
        let text = r#"web.shop:80 {"headers":{"X-User":"anna"}}"#;
        let personal = parse(text).unwrap();
        assert_eq!(personal.name(), r#"web.shop:80 {"headers":{"x-user":"anna"}}"#);
        assert_eq!(personal.to_string(), "web.shop:80, requests with x-user: anna");
        assert_eq!(parse(&personal.name()).unwrap(), personal);
        assert!(!personal.is_same(&parse("web.shop:80").unwrap()));
        for text in ["web.shop:80 ", "web.shop:80 {}", "web.shop:80 x-user=anna", r#"web.shop:80 {"method":"GET"}"#] {
            assert!(matches!(parse(text), Err(RequestError::Condition(_))), "{text}");
        }
        assert_eq!(ExposeRequest::parse(text, false, "ana".into()), Err(RequestError::Created));
    }
}
