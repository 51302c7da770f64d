//! A Service as a command-line argument.

use std::str::FromStr;

use crate::{
    config::{InvalidValue, Label, Namespace},
    routing::named::without_cluster_domain,
};

/// `SERVICE[.NAMESPACE]`, also as `svc/SERVICE` and with the cluster's domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedService {
    pub name: Label,
    /// `None`: the namespace of the command.
    pub namespace: Option<Namespace>,
}

impl FromStr for NamedService {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains(':') {
            return Err("it has no port here: write PORT:SERVICE-PORT --as SERVICE.NAMESPACE".to_owned());
        }
        let name = text.split_once('/').filter(|(kind, _)| ["svc", "service", "services"].contains(kind));
        let name = without_cluster_domain(name.map_or(text, |(_, name)| name));
        let parse = || match name.split_once('.') {
            Some((name, namespace)) => Ok(Self { name: name.parse()?, namespace: Some(namespace.parse()?) }),
            None => Ok(Self { name: name.parse()?, namespace: None }),
        };
        parse().map_err(|error: InvalidValue| format!("{error}: write SERVICE or SERVICE.NAMESPACE"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_the_spellings_of_targets() {
        for (text, name, namespace) in [
            ("web", "web", None),
            ("web.shop", "web", Some("shop")),
            ("svc/web", "web", None),
            ("service/web.shop", "web", Some("shop")),
            ("web.shop.svc", "web", Some("shop")),
            ("web.shop.svc.cluster.local", "web", Some("shop")),
            ("web.svc", "web", Some("svc")),
        ] {
            let found: NamedService = text.parse().unwrap();
            assert_eq!(
                (found.name.as_str(), found.namespace.as_ref().map(Namespace::as_str)),
                (name, namespace),
                "{text}"
            );
        }
        for (text, part) in [
            ("web.shop:80", "PORT:SERVICE-PORT"),
            ("deploy/web", "SERVICE.NAMESPACE"),
            ("web.shop.prod.cx", "SERVICE.NAMESPACE"),
            ("", "SERVICE.NAMESPACE"),
        ] {
            let error = text.parse::<NamedService>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
