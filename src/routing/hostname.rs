//! The grammar of dynamic hostnames: parser and formatter.
//!
//! ```text
//! long:   {service}-{port}.svc.{namespace}.ns.{context}.cx.{dynamic_host}      {pod}-{port}.pod....
//! short:  [{port}.][{pod}.]{service}.{namespace}[.{context}.cx].localhost
//! ```
//!
//! A label has up to 63 bytes. If service or pod and port are longer together, the number of the port comes first:
//! `{port}.{pod}.pod....`
//!
//! Contexts and pods may contain dots, so the long form is parsed from its end. Every name is checked before any
//! request to an API server.
//!
//! A namespace may be called `cx`, or like the first label of the dynamic host (`k8s`). If a name does not have the
//! form that its end suggests, it is parsed as a name in such a namespace: `web.cx.localhost`,
//! `8080.pg-0.pg.cx.localhost`, `web.k8s.localhost`. No name has two meanings, because the name of a Service is never a
//! number.

use std::fmt;

use super::table::LONGEST_HOST;
use crate::config::{ContextName, Label, Namespace, PortRef, Workload};

const SHORT_SUFFIX: &str = ".localhost";

/// Bytes of a label (RFC 1035, section 2.3.4). Resolvers refuse longer ones.
const LONGEST_LABEL: usize = 63;

/// A parsed dynamic hostname.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicName {
    /// An alias of the configuration, or a context of the kubeconfig. `None`: the current context.
    pub context: Option<ContextName>,
    pub namespace: Namespace,
    pub workload: Workload,
    pub port: PortRef,
}

/// Why a name under a dynamic suffix has neither form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not under a dynamic suffix.
    #[error("not a dynamic name")]
    NotDynamic,
    #[error("{0}")]
    Malformed(&'static str),
}

impl DynamicName {
    /// Parses a host in lower case, without port or trailing dot.
    ///
    /// # Errors
    /// A label is missing, or is no valid name.
    pub fn parse(host: &str, dynamic_host: &str) -> Result<Self, NameError> {
        let short = || match host.strip_suffix(SHORT_SUFFIX) {
            Some(name) if name.contains('.') => Self::parse_short(name),
            _ => Err(NameError::NotDynamic),
        };
        if host.len() > LONGEST_HOST {
            return Err(NameError::NotDynamic);
        }
        match host.strip_suffix(dynamic_host).and_then(|name| name.strip_suffix('.')) {
            Some(name) => Self::parse_long(name).or_else(|error| short().map_err(|_| error)),
            None => short(),
        }
    }

    fn parse_long(name: &str) -> Result<Self, NameError> {
        let malformed = NameError::Malformed;
        let name =
            name.strip_suffix(".cx").ok_or(malformed("the long form ends with .{context}.cx and the dynamic host"))?;
        let mut likeliest = None;
        // From the end, because contexts and pods may contain `.ns.`.
        for (at, label) in name.rmatch_indices("ns") {
            let (before, behind) = (&name[..at], &name[at + label.len()..]);
            let (Some(before), Some(context)) = (before.strip_suffix('.'), behind.strip_prefix('.')) else { continue };
            match Self::in_context(before, context) {
                Ok(found) => return Ok(found),
                Err(error) => _ = likeliest.get_or_insert(error),
            }
        }
        Err(likeliest.unwrap_or(malformed("the long form has .{namespace}.ns. before the context")))
    }

    /// Parses `{workload}-{port}.{kind}.{namespace}`, or `{port}.{workload}.{kind}.{namespace}`.
    fn in_context(name: &str, context: &str) -> Result<Self, NameError> {
        let malformed = NameError::Malformed;
        let kinds = malformed("the long form starts with {service}-{port}.svc. or {pod}-{port}.pod.");
        let Some((rest, namespace)) = name.rsplit_once('.') else { return Err(kinds) };
        let (workload, is_service) = match rest.rsplit_once('.') {
            Some((workload, "svc")) => (workload, true),
            Some((workload, "pod")) => (workload, false),
            _ => return Err(kinds),
        };
        let (workload, port) = match workload.split_once('.') {
            Some((port, workload)) if is_number(port) => (workload, port),
            _ => {
                workload.rsplit_once('-').ok_or(malformed("the port comes after the last hyphen: {service}-{port}"))?
            }
        };
        let port = port.parse().map_err(|_| malformed("the port is neither 1-65535 nor a port's name"))?;
        let namespace = parse_namespace(namespace)?;
        let context = parse_context(context)?;
        let workload = match is_service {
            true => Workload::Service(workload.parse().map_err(|_| malformed("the service is not a valid name"))?),
            false => Workload::Pod(workload.parse().map_err(|_| malformed("the pod is not a valid name"))?),
        };
        Ok(Self { context: Some(context), namespace, workload, port })
    }

    fn parse_short(name: &str) -> Result<Self, NameError> {
        let Some(before) = name.strip_suffix(".cx") else { return Self::of_labels(name, None) };
        let malformed = NameError::Malformed;
        let with_context = match before.rsplit_once('.') {
            None => Err(malformed("a context is missing before .cx")),
            Some((name, context)) => parse_context(context).and_then(|context| Self::of_labels(name, Some(context))),
        };
        with_context.or_else(|error| Self::of_labels(name, None).map_err(|_| error))
    }

    /// Parses `[{port}.][{pod}.]{service}.{namespace}`.
    fn of_labels(name: &str, context: Option<ContextName>) -> Result<Self, NameError> {
        let malformed = NameError::Malformed;
        let mut labels: Vec<&str> = name.split('.').collect();
        let port = match is_number(labels[0]) && labels.len() > 2 {
            true => labels.remove(0).parse().map_err(|_| malformed("the port is not one of 1-65535"))?,
            false => PortRef::Auto,
        };
        let labels: Result<Vec<Label>, _> = labels.into_iter().map(str::parse).collect();
        let labels = labels.map_err(|_| malformed("a part of it is not a Kubernetes name"))?;
        let (workload, namespace) = match labels.as_slice() {
            [service, namespace] => (Workload::Service(service.clone()), namespace),
            [pod, service, namespace] => {
                (Workload::PodOfService { pod: pod.clone().into(), service: service.clone() }, namespace)
            }
            _ => return Err(malformed("the short form is [port.][pod.]service.namespace[.context.cx].localhost")),
        };
        if let Workload::Service(service) | Workload::PodOfService { service, .. } = &workload
            && is_number(service)
        {
            return Err(malformed("no Service is called by a number"));
        }
        Ok(Self { context, namespace: parse_namespace(namespace)?, workload, port })
    }
}

/// Formats the short form if it can express the name, else the long form under `k8s.localhost`.
impl fmt::Display for DynamicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_short_context = self.context.as_deref().is_none_or(|context| !context.contains('.'));
        let port_is_short = !matches!(self.port, PortRef::Name(_));
        if is_short_context && port_is_short && !matches!(self.workload, Workload::Pod(_)) {
            if let PortRef::Number(port) = self.port {
                write!(f, "{port}.")?;
            }
            match &self.workload {
                Workload::PodOfService { pod, service } => write!(f, "{pod}.{service}")?,
                Workload::Service(name) => f.write_str(name)?,
                Workload::Pod(name) => f.write_str(name)?,
                // No hostname can express this.
                Workload::Address(address) => write!(f, "{address}")?,
            }
            write!(f, ".{}", self.namespace)?;
            if let Some(context) = &self.context {
                write!(f, ".{context}.cx")?;
            }
            return f.write_str(SHORT_SUFFIX);
        }
        let (workload, kind) = match &self.workload {
            Workload::Service(service) => (service.to_string(), "svc"),
            Workload::Pod(pod) | Workload::PodOfService { pod, .. } => (pod.to_string(), "pod"),
            Workload::Address(address) => (address.to_string(), "pod"),
        };
        let port = match &self.port {
            PortRef::Number(port) => port.to_string(),
            PortRef::Name(name) => name.to_string(),
            PortRef::Auto => "80".to_owned(),
            PortRef::Https => "443".to_owned(),
        };
        let context = self.context.as_deref().unwrap_or("current");
        let (first, last) = (workload.split('.').next(), workload.rsplit('.').next());
        let is_too_long = last.is_some_and(|label| label.len() + 1 + port.len() > LONGEST_LABEL);
        match is_number(&port) && (is_too_long || workload.contains('.') && first.is_some_and(is_number)) {
            true => write!(f, "{port}.{workload}")?,
            false => write!(f, "{workload}-{port}")?,
        }
        write!(f, ".{kind}.{}.ns.{context}.cx.{}", self.namespace, crate::config::defaults::DYNAMIC_HOST)
    }
}

fn is_number(label: &str) -> bool {
    !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_namespace(text: &str) -> Result<Namespace, NameError> {
    text.parse().map_err(|_| NameError::Malformed("the namespace is not a valid name"))
}

/// Parses the name or alias of a context that fits into a hostname. Other contexts need an alias.
fn parse_context(text: &str) -> Result<ContextName, NameError> {
    let refused = NameError::Malformed("the context is not one that a hostname can have: give it an alias");
    text.parse().ok().filter(|_| fits_a_hostname(text)).ok_or(refused)
}

/// Returns whether a URL can contain the name of a context: `@` would end the user's part, and a label has up to 63 bytes.
pub fn fits_a_url(context: &str) -> bool {
    fits_a_hostname(context)
        && !context.contains('@')
        && context.split('.').all(|label| (1..=LONGEST_LABEL).contains(&label.len()))
}

fn fits_a_hostname(text: &str) -> bool {
    text.len() <= 253
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte))
        && !text.starts_with('.')
        && !text.ends_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(host: &str) -> Result<DynamicName, NameError> {
        DynamicName::parse(host, "k8s.localhost")
    }

    fn name(context: Option<&str>, namespace: &str, workload: Workload, port: PortRef) -> DynamicName {
        let context = context.map(|context| context.parse().unwrap());
        DynamicName { context, namespace: namespace.parse().unwrap(), workload, port }
    }

    #[test]
    fn the_long_form_is_taken_apart_from_its_end() {
        let service = |name: &str| Workload::Service(name.parse().unwrap());
        let cases = [
            (
                "nginx-80.svc.default.ns.my-cluster.cx.k8s.localhost",
                name(Some("my-cluster"), "default", service("nginx"), PortRef::number(80).unwrap()),
            ),
            (
                "argocd-server-https.svc.argocd.ns.kind.cx.k8s.localhost",
                name(Some("kind"), "argocd", service("argocd-server"), PortRef::Name("https".parse().unwrap())),
            ),
            (
                "web-80.svc.shop.ns.gke_a_b.dots.in.it.cx.k8s.localhost",
                name(Some("gke_a_b.dots.in.it"), "shop", service("web"), PortRef::number(80).unwrap()),
            ),
            (
                "my.pod-0-8080.pod.shop.ns.c.cx.k8s.localhost",
                name(Some("c"), "shop", Workload::Pod("my.pod-0".parse().unwrap()), PortRef::number(8080).unwrap()),
            ),
        ];
        for (host, wanted) in cases {
            assert_eq!(parse(host), Ok(wanted), "{host}");
        }
    }

    #[test]
    fn the_port_comes_first_if_the_label_would_be_too_long() {
        let pod =
            |pod: &str| name(Some("c"), "shop", Workload::Pod(pod.parse().unwrap()), PortRef::number(80).unwrap());
        let (longest, fits) = ("p".repeat(63), "p".repeat(60));
        for (workload, label) in [
            (&*longest, format!("80.{longest}")),
            (&fits, format!("{fits}-80")),
            (&format!("a.{longest}"), format!("80.a.{longest}")),
            (&format!("{longest}.a"), format!("{longest}.a-80")),
            ("7.web-9", "80.7.web-9".to_owned()),
            ("web-7c4f9-abcde", "web-7c4f9-abcde-80".to_owned()),
        ] {
            let host = format!("{label}.pod.shop.ns.c.cx.k8s.localhost");
            assert_eq!((pod(workload).to_string(), parse(&host)), (host, Ok(pod(workload))));
        }
        assert_eq!(parse("80.web-7c4f9-abcde.pod.shop.ns.c.cx.k8s.localhost"), Ok(pod("web-7c4f9-abcde")));
        let service =
            name(Some("a.b"), "shop", Workload::Service(longest.parse().unwrap()), PortRef::number(80).unwrap());
        let host = format!("80.{longest}.svc.shop.ns.a.b.cx.k8s.localhost");
        assert_eq!((service.to_string(), parse(&host)), (host, Ok(service)));
    }

    #[test]
    fn the_short_form_has_a_service_and_a_namespace_at_least() {
        let service = |name: &str| Workload::Service(name.parse().unwrap());
        let pod = Workload::PodOfService { pod: "pg-0".parse().unwrap(), service: "pg".parse().unwrap() };
        let cases = [
            ("web.shop.localhost", name(None, "shop", service("web"), PortRef::Auto)),
            ("8080.web.shop.localhost", name(None, "shop", service("web"), PortRef::number(8080).unwrap())),
            ("pg-0.pg.data.localhost", name(None, "data", pod.clone(), PortRef::Auto)),
            ("5432.pg-0.pg.data.prod.cx.localhost", name(Some("prod"), "data", pod, PortRef::number(5432).unwrap())),
            ("web.shop.prod.cx.localhost", name(Some("prod"), "shop", service("web"), PortRef::Auto)),
        ];
        for (host, wanted) in cases {
            assert_eq!(parse(host), Ok(wanted.clone()), "{host}");
            assert_eq!(wanted.to_string(), host);
        }
    }

    #[test]
    fn namespaces_may_be_called_as_the_grammar_calls_its_parts() {
        let service = |name: &str| Workload::Service(name.parse().unwrap());
        let pod = |pod: &str, service: &str| Workload::PodOfService {
            pod: pod.parse().unwrap(),
            service: service.parse().unwrap(),
        };
        for (host, wanted) in [
            ("web.cx.localhost", name(None, "cx", service("web"), PortRef::Auto)),
            ("8080.web.cx.localhost", name(None, "cx", service("web"), PortRef::number(8080).unwrap())),
            ("pg-0.pg.cx.localhost", name(None, "cx", pod("pg-0", "pg"), PortRef::Auto)),
            ("5432.pg-0.pg.cx.localhost", name(None, "cx", pod("pg-0", "pg"), PortRef::number(5432).unwrap())),
            ("web.cx.dev.cx.localhost", name(Some("dev"), "cx", service("web"), PortRef::Auto)),
            ("cx.cx.localhost", name(None, "cx", service("cx"), PortRef::Auto)),
            ("cx.cx.cx.cx.localhost", name(Some("cx"), "cx", service("cx"), PortRef::Auto)),
            ("web.shop.cx.cx.localhost", name(Some("cx"), "shop", service("web"), PortRef::Auto)),
            ("web.k8s.localhost", name(None, "k8s", service("web"), PortRef::Auto)),
            ("80.web.k8s.localhost", name(None, "k8s", service("web"), PortRef::number(80).unwrap())),
            ("5432.pg-0.pg.k8s.localhost", name(None, "k8s", pod("pg-0", "pg"), PortRef::number(5432).unwrap())),
            ("web.k8s.dev.cx.localhost", name(Some("dev"), "k8s", service("web"), PortRef::Auto)),
            ("web.svc.localhost", name(None, "svc", service("web"), PortRef::Auto)),
            ("svc.ns.localhost", name(None, "ns", service("svc"), PortRef::Auto)),
            (
                "web-80.svc.svc.ns.c.cx.k8s.localhost",
                name(Some("c"), "svc", service("web"), PortRef::number(80).unwrap()),
            ),
            (
                "web-80.svc.ns.ns.c.cx.k8s.localhost",
                name(Some("c"), "ns", service("web"), PortRef::number(80).unwrap()),
            ),
            (
                "web-80.svc.pod.ns.c.cx.k8s.localhost",
                name(Some("c"), "pod", service("web"), PortRef::number(80).unwrap()),
            ),
            (
                "web-80.svc.cx.ns.cx.cx.k8s.localhost",
                name(Some("cx"), "cx", service("web"), PortRef::number(80).unwrap()),
            ),
            (
                "web-80.svc.shop.ns.a.ns.b.cx.k8s.localhost",
                name(Some("a.ns.b"), "shop", service("web"), PortRef::number(80).unwrap()),
            ),
            (
                "my.svc.x-80.pod.shop.ns.c.cx.k8s.localhost",
                name(Some("c"), "shop", Workload::Pod("my.svc.x".parse().unwrap()), PortRef::number(80).unwrap()),
            ),
        ] {
            assert_eq!(parse(host), Ok(wanted), "{host}");
        }
    }

    #[test]
    fn every_name_that_is_written_is_read_as_what_it_was() {
        let words = ["web", "cx", "k8s", "svc", "ns", "pod", "pg-0", "localhost"];
        let ports = [PortRef::Auto, PortRef::number(8080).unwrap(), PortRef::Name("http".parse().unwrap())];
        let mut count = 0;
        for (service, namespace) in words.iter().flat_map(|service| words.map(|namespace| (*service, namespace))) {
            let pods = words
                .map(|pod| Workload::PodOfService { pod: pod.parse().unwrap(), service: service.parse().unwrap() });
            let workloads = pods
                .into_iter()
                .chain([Workload::Service(service.parse().unwrap()), Workload::Pod(service.parse().unwrap())]);
            for workload in workloads {
                for port in &ports {
                    for context in [None, Some("dev"), Some("cx"), Some("a.ns.b"), Some("x.cx")] {
                        let is_long = matches!((&workload, port), (Workload::Pod(_), _) | (_, PortRef::Name(_)))
                            || context.is_some_and(|context| context.contains('.'));
                        // The long form needs a context and a port, and cannot express a pod's Service.
                        let is_lossy = context.is_none()
                            || *port == PortRef::Auto
                            || matches!(workload, Workload::PodOfService { .. });
                        if is_long && is_lossy {
                            continue;
                        }
                        let name = name(context, namespace, workload.clone(), port.clone());
                        assert_eq!(parse(&name.to_string()), Ok(name.clone()), "{name}");
                        count += 1;
                    }
                }
            }
        }
        assert!(count > 4_000, "{count}");
    }

    #[test]
    fn what_is_no_name_is_told_before_anything_is_asked() {
        assert_eq!(parse("example.com"), Err(NameError::NotDynamic));
        assert_eq!(parse("argo.localhost"), Err(NameError::NotDynamic));
        for host in [
            "0.web.shop.localhost",
            "70000.web.shop.localhost",
            "we_b.shop.localhost",
            "a.b.c.d.localhost",
            "-web.shop.localhost",
            "web.shop..cx.localhost",
            "web.svc.shop.ns.c.cx.k8s.localhost",
            "web-80.svc.shop.c.cx.k8s.localhost",
            "web-80.svc.sh.op.ns.c.cx.k8s.localhost",
            "web-99999.svc.shop.ns.c.cx.k8s.localhost",
            "web-80.xyz.shop.ns.c.cx.k8s.localhost",
        ] {
            assert!(matches!(parse(host), Err(NameError::Malformed(_))), "{host}: {:?}", parse(host));
        }
    }
}
