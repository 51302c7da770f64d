//! Values that are validated when they are made, so their users may put them into API paths unchecked.

use std::{fmt, net::IpAddr, num::NonZeroU16, ops::Deref, str::FromStr};

use super::names::{is_host, is_label, is_port_name, is_subdomain};

/// Default port on which a relay accepts its clients.
pub const RELAY_PORT: u16 = 7835;

/// Error of a text that is not a valid value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct InvalidValue {
    text: String,
    /// Description of a valid value, with an article: `a hostname`.
    wanted: &'static str,
}

/// Defines a newtype of a string for which `$is` holds; `$wanted` describes a valid one.
macro_rules! text_value {
    ($(#[$doc:meta])* $name:ident, $is:expr, $wanted:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// # Errors
            /// The text breaks the rule.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidValue> {
                let (text, is): (String, fn(&str) -> bool) = (text.into(), $is);
                if is(&text) { Ok(Self(text)) } else { Err(InvalidValue { text, wanted: $wanted }) }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, text: &str) -> bool {
                self.0 == text
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, text: &&str) -> bool {
                self.0 == *text
            }
        }

        impl FromStr for $name {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.0
            }
        }
    };
}

text_value!(
    /// The name of a context as the kubeconfig spells it, e.g. `arn:aws:eks:eu-west-1:1234:cluster/prod`. Any text but an empty
    /// one.
    ContextName,
    |text| !text.is_empty(),
    "the name of a context"
);

text_value!(
    /// A namespace: a DNS-1123 label.
    Namespace,
    is_label,
    "the name of a namespace: at most 63 lower-case letters, digits and hyphens"
);

text_value!(
    /// The name of a Service or a container: a DNS-1123 label.
    Label,
    is_label,
    "a name of at most 63 lower-case letters, digits and hyphens"
);

text_value!(
    /// The name of a pod or a Secret: a DNS-1123 subdomain.
    Subdomain,
    is_subdomain,
    "a name of at most 253 lower-case letters, digits, hyphens and dots"
);

text_value!(
    /// The name of a port: an IANA_SVC_NAME (RFC 6335, section 5.1).
    PortName,
    is_port_name,
    "the name of a port: at most 15 lower-case letters, digits and single hyphens, with one letter at least"
);

text_value!(
    /// A hostname, or an IP address without brackets, as seen from the network that it is in.
    Host,
    |text| text.parse::<IpAddr>().is_ok() || is_host(&text.to_ascii_lowercase()),
    "a hostname or an IP address"
);

/// A host and a port: `db.internal:5432`, `[2001:db8::1]:80`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    pub host: Host,
    pub port: NonZeroU16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// The namespace `default`, which Kubernetes means if none is given.
impl Default for Namespace {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

/// A label is a valid subdomain.
impl From<Label> for Subdomain {
    fn from(label: Label) -> Self {
        Self(label.0)
    }
}

/// A reference to a port of a Service or pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortRef {
    Number(NonZeroU16),
    Name(PortName),
    /// No port was given: the only one, else the port that a browser most likely means.
    Auto,
    /// No port was given, and the client uses https: a port that declares https, else as for `Auto`.
    Https,
}

impl PortRef {
    /// Returns the reference to a port number. `None` for 0.
    pub fn number(port: u16) -> Option<Self> {
        NonZeroU16::new(port).map(Self::Number)
    }

    /// Returns whether both may mean the same port of a Service. Two different numbers, or two different names, do not.
    pub fn may_be(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number(_), Self::Number(_)) | (Self::Name(_), Self::Name(_)) => self == other,
            _ => true,
        }
    }
}

/// Parses a number from 1 to 65535, or the name of a port.
impl FromStr for PortRef {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let wrong = || InvalidValue { text: text.to_owned(), wanted: "a port: 1-65535, or the name of a port" };
        match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse().map(Self::Number).map_err(|_| wrong()),
            false => PortName::new(text).map(Self::Name).map_err(|_| wrong()),
        }
    }
}

/// Address of a relay: `relay.example.com`, `10.0.0.5:7835`, `[::1]:7835`. Default port: 7835.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelayAddress(HostPort);

impl RelayAddress {
    /// Returns the hostname, or the IP address without brackets.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// Returns the port, 1-65535.
    pub fn port(&self) -> u16 {
        self.0.port.get()
    }
}

impl FromStr for RelayAddress {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue { text: text.to_owned(), wanted: "the address of a relay: HOST or HOST:PORT" };
        // In an IPv6 address without brackets, no colon separates a port.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()),
            _ => (text, NonZeroU16::new(RELAY_PORT)),
        };
        let host = Host::new(host.trim_matches(['[', ']'])).map_err(|_| invalid())?;
        Ok(Self(HostPort { host, port: port.ok_or_else(invalid)? }))
    }
}

impl fmt::Display for RelayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A range of ports, first and last included: `20000-20999`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    first: NonZeroU16,
    last: NonZeroU16,
}

impl PortRange {
    /// Returns the range. `None` if `last` is below `first`.
    pub const fn new(first: NonZeroU16, last: NonZeroU16) -> Option<Self> {
        if first.get() <= last.get() { Some(Self { first, last }) } else { None }
    }

    pub fn first(self) -> u16 {
        self.first.get()
    }

    pub fn last(self) -> u16 {
        self.last.get()
    }
}

impl FromStr for PortRange {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let range = text
            .split_once('-')
            .and_then(|(first, last)| Self::new(first.trim().parse().ok()?, last.trim().parse().ok()?));
        range.ok_or_else(|| InvalidValue { text: text.to_owned(), wanted: "two ports: FIRST-LAST" })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_can_leave_its_place_in_a_path() {
        let long = "a".repeat(64);
        for text in ["", "x/y", "..", ".", "a b", "a\n", "A", "ä", "-a", "a-", "a%2fb", "a?b", "a#b", "*", &long] {
            assert!(Namespace::new(text).is_err() && Label::new(text).is_err(), "{text:?}");
        }
        let longest = [&long[..63], &long[..63], &long[..63], &long[..61]].join(".");
        for text in ["", "x/y", "..", ".", "a..b", "a.", ".a", "a b", "a\n", "A.b", "a.-b", "*", &format!("{longest}a")]
        {
            assert!(Subdomain::new(text).is_err(), "{text:?}");
        }
        assert!(Namespace::new("kube-system").is_ok() && Label::new(&long[..63]).is_ok());
        assert!(Subdomain::new("web-0.a").is_ok() && Subdomain::new(longest).is_ok());
        assert!(Subdomain::new(long).is_ok(), "Kubernetes creates pods whose names are no labels");
        assert!(ContextName::new("").is_err() && ContextName::new("arn:aws:eks:x/prod").is_ok());
        let error = Namespace::new("x/y").unwrap_err().to_string();
        assert!(error.starts_with("\"x/y\" is not the name of a namespace"), "{error}");
    }

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for text in ["", "a b", "a_b", "a:80", "[::1]", "a/b", "-a", "a\n"] {
            assert!(Host::new(text).is_err(), "{text:?}");
        }
        for (host, shown) in
            [("DB.internal", "DB.internal:80"), ("10.0.0.5", "10.0.0.5:80"), ("fd00::1", "[fd00::1]:80")]
        {
            let (host, port) = (Host::new(host).unwrap(), NonZeroU16::new(80).unwrap());
            assert_eq!(HostPort { host, port }.to_string(), shown);
        }
    }

    #[test]
    fn a_port_is_a_number_or_a_name() {
        let named = |text: &str| text.parse::<PortRef>();
        assert_eq!(named("80"), Ok(PortRef::number(80).unwrap()));
        assert_eq!(named("http"), Ok(PortRef::Name("http".parse().unwrap())));
        for text in ["", "0", "65536", "99999999999", "+80", "-1", "a/b", "HTTP", "sixteen-letters-x", "a--b", "8 0"] {
            assert!(named(text).is_err(), "{text:?}");
        }
        assert_eq!(PortRef::number(0), None);
    }

    #[test]
    fn a_range_has_two_ports_in_order() {
        let range: PortRange = "20000 - 20999".parse().unwrap();
        assert_eq!((range.first(), range.last(), range.to_string()), (20_000, 20_999, "20000-20999".to_owned()));
        for text in ["", "1", "0-1", "2-1", "1-65536", "1-2-3", "a-b"] {
            assert!(text.parse::<PortRange>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_relay_is_written_as_it_is_read() {
        for (text, shown) in [
            ("relay.test", "relay.test:7835"),
            ("10.0.0.5:1", "10.0.0.5:1"),
            ("[::1]", "[::1]:7835"),
            ("::1", "[::1]:7835"),
        ] {
            assert_eq!(text.parse::<RelayAddress>().unwrap().to_string(), shown);
            assert_eq!(shown.parse::<RelayAddress>().unwrap().to_string(), shown);
        }
        assert!("a b".parse::<RelayAddress>().is_err());
    }
}
