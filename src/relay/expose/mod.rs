//! Services of the cluster that lead to laptops, through a relay that runs in a pod.
//!
//! | there is | what becomes of it | at the end |
//! |---|---|---|
//! | no such Service | it is created, with the ports that were asked for | it is deleted |
//! | no such Service, and `--replace` | it is refused | |
//! | a Service, and `--replace` | its port leads to the laptop, all others to the pods | its port is as before |
//! | a Service without a selector, and `--replace` | the same; the port is left out of its endpoints | they are as before |
//! | a Service, and conditions | requests of its port that meet one go to that laptop, all others to the pods | its port is as before |
//! | an ExternalName, a headless Service, endpoints that a controller writes | it is refused, and nothing is touched | |
//!
//! ```text
//! claim    one task for each Service: compares what is wanted with what there is, until they are the same
//!   -> reconcile    one such step, from whatever state somebody has left
//!        -> service, endpoints    what has to be changed in an object, and what it was: functions without a cluster
//!        -> lease                 who may change it
//!        -> kube                  the calls
//!   -> pods    where the requests go that are nobody's, of a port that is taken over in part
//! condition    which requests are whose
//! authorize, review    who may have which Service: by the rules of a key, and by RBAC
//! sweep    what relays that are gone have left is a claim that nobody holds
//! ```
//!
//! A relay has no memory of its own. The patch that changes an object keeps its old state in the object.

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

use serde_json::Value;

pub use self::claim::{Claim, ClaimError, Exposer, PodAddress, Pods};
use self::condition::{Condition, ConditionError};
use super::auth;

/// How many letters of a name are repeated that is none.
const LONGEST_SHOWN: usize = 200;

/// Label of every object that a relay has created or changed, except endpoints that are written by hand.
pub const EXPOSED: &str = "adit/exposed";

/// Annotation of a Service that is taken over, and of its Lease: a [`service::Takeover`] as JSON.
pub const TAKEOVER: &str = "adit/takeover";

/// Annotation of endpoints that were written by hand: what they said.
pub const ORIGINAL: &str = "adit/original";

/// Annotation of the slices of a relay: which one that is.
pub const RELAY: &str = "adit/relay";

/// Label of every object that a relay has created.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// A Service: `shop/web`.
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
    /// The Service's port.
    pub port: u16,
    /// Only these requests; all others go on to the pods. None: everything.
    pub condition: Option<Condition>,
    /// A Service that exists may be taken over.
    pub replaces: bool,
    /// Name of the laptop's user, for people.
    pub owner: String,
}

/// Why a name is nothing to take over.
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
    /// Reads `service.namespace:port`, as a client writes it, or that and a condition as JSON behind a space.
    ///
    /// # Errors
    /// It is neither.
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

    /// Returns it as a client writes it.
    pub fn name(&self) -> String {
        let Self { service: ServiceName { namespace, name }, port, condition, .. } = self;
        let condition = condition.as_ref().map_or(String::new(), |condition| format!(" {}", condition.to_json()));
        format!("{name}.{namespace}:{port}{condition}")
    }

    /// Returns whether two clients ask for the same.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.service, self.port, &self.condition) == (&other.service, other.port, &other.condition)
    }
}

/// `web.shop:80`, or `web.shop:80, requests with x-user: anna`.
impl fmt::Display for ExposeRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}:{}", self.service.name, self.service.namespace, self.port)?;
        self.condition.as_ref().map_or(Ok(()), |condition| write!(f, ", requests with {condition}"))
    }
}

/// Authority over takeovers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authority {
    /// Its key.
    #[default]
    Keys,
    /// Its key, and what RBAC lets its own user do in the cluster.
    Kubernetes,
}

/// Why a relay cannot take over Services from where it runs.
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
    /// Tells a relay from the one before it in the same pod.
    pub start: String,
    /// Addresses of the relay's pod.
    pub addresses: Vec<IpAddr>,
    /// The node of its pod, where that is known.
    pub node: Option<String>,
}

/// `namespace/pod/uid/start`, as objects name it.
impl fmt::Display for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.namespace, self.pod, self.uid, self.start)
    }
}

impl Relay {
    /// Returns the relay of this process, as the downward API tells. `bind`: the address that its tunnels listen on.
    ///
    /// # Errors
    /// This is no pod, or it does not know who it is.
    pub fn of_this_pod(bind: IpAddr) -> Result<Self, PodError> {
        let variable = |name: &'static str| env::var(name).map_err(|_| PodError::Variable(name));
        let ips = env::var("POD_IPS").or_else(|_| variable("POD_IP"))?;
        let parse = |ip: &str| ip.trim().parse().map_err(|_| PodError::Address(ip.to_owned()));
        let addresses = ips.split(',').map(parse).collect::<Result<Vec<IpAddr>, _>>()?;
        // A socket of 0.0.0.0 takes no visitors by IPv6.
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

    /// Returns the namespace and the pod of a relay that an object names, with its UID and start.
    fn parse(text: &str) -> Option<[&str; 4]> {
        let parts: Vec<&str> = text.split('/').collect();
        parts.try_into().ok()
    }

    /// Returns how people name a relay that an object names: `namespace/pod`.
    fn shown(text: &str) -> String {
        Self::parse(text).map_or_else(|| text.to_owned(), |[namespace, pod, ..]| format!("{namespace}/{pod}"))
    }
}

/// Returns a new value for [`Relay::start`].
///
/// # Errors
/// The system has no random numbers.
pub fn start() -> io::Result<String> {
    let random = auth::random::<4>()?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
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
