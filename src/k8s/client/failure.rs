//! Translates failed API requests into errors for users.

use std::time::Duration;

use kube::core::Status;

use super::{Cluster, answer::Unexpected, authorize::NotSignedIn};
use crate::{
    config::shell::quoted,
    k8s::{ClusterError, Namespaces, credential::Credential, reach, sign_in::Failure},
    printable::printable,
};

/// Reason that kube gives to answers that are not a Status.
const NO_STATUS: &str = "Failed to parse error data";

/// Characters of a server's message that a user gets to see.
const LONGEST_MESSAGE: usize = 500;

impl Cluster {
    /// Translates an error of a request.
    pub(super) fn translate(&self, namespaces: Namespaces, error: kube::Error) -> ClusterError {
        let context = self.context.clone();
        match error {
            kube::Error::Api(status) if status.code == 403 && status.reason == "Forbidden" => {
                self.forbidden(&status.message, namespaces)
            }
            kube::Error::Api(status) if status.reason != NO_STATUS && is_of_policy(&status.message) => {
                self.policy(&status.message)
            }
            kube::Error::Api(status) => self.refusal(status.code, &status.message, namespaces),
            kube::Error::Service(error) => match error.downcast::<NotSignedIn>() {
                Ok(error) => self.not_signed_in(error.0),
                Err(error) => match error.downcast::<Unexpected>() {
                    Ok(odd) => ClusterError::Protocol { context, reason: odd.to_string() },
                    Err(error) => self.unreachable(&*error),
                },
            },
            kube::Error::HyperError(error) => self.unreachable(&error),
            other => {
                let reason = format!("it is not that of a Kubernetes API server ({other})");
                ClusterError::Protocol { context, reason }
            }
        }
    }

    /// Translates a 403 of an API server.
    pub fn forbidden(&self, message: &str, namespaces: impl Into<Namespaces>) -> ClusterError {
        match self.refusal(403, message, namespaces) {
            ClusterError::Protocol { .. } => self.policy(message),
            error => error,
        }
    }

    /// Returns the error for a request that an admission policy denies.
    pub fn policy(&self, message: &str) -> ClusterError {
        ClusterError::Policy { context: self.context.clone(), reason: shown(message) }
    }

    /// Translates a status code and the message of a Status object.
    pub fn refusal(&self, code: u16, message: &str, namespaces: impl Into<Namespaces>) -> ClusterError {
        let context = self.context.clone();
        let said = shown(message);
        match code {
            401 => self.not_signed_in(self.user.refusal()),
            403 => match Denial::of(message) {
                Some(Denial { user, verb, resource }) => {
                    let namespaces = namespaces.into();
                    let option = match &namespaces {
                        Namespaces::All => "-A".to_owned(),
                        Namespaces::One(namespace) => format!("-n {namespace}"),
                    };
                    // Verb and resource come from the server, so they must be quoted. kubectl reads `pods/exec` as the pod "exec".
                    let object = match resource.split_once('/') {
                        Some((resource, part)) => format!("{} --subresource={}", quoted(resource), quoted(part)),
                        None => quoted(&resource),
                    };
                    let asked = format!("{} {object} {option}", quoted(&verb));
                    let hint = format!("{} auth can-i {asked}", self.kubectl()).into();
                    let [user, verb, resource] = [user, verb, resource].map(String::into_boxed_str);
                    ClusterError::Forbidden { user, verb, resource, namespaces, context, hint }
                }
                None => ClusterError::Protocol { context, reason: format!("403: {said}") },
            },
            404 => {
                let check = match self.server.path() {
                    "/" => "is the server in the kubeconfig an API server?".to_owned(),
                    path => format!("is the path of the server in the kubeconfig right, {path:?}?"),
                };
                ClusterError::Protocol { context, reason: format!("404: {said}; {check}") }
            }
            // Message of Go's servers, nginx and Apache.
            400 if self.server.scheme_str() == Some("http") && is_tls_wanted(message) => {
                ClusterError::Protocol { context, reason: format!("400: {}", reach::SPEAKS_TLS) }
            }
            429 | 500..=599 => ClusterError::Unavailable {
                context,
                reason: format!("{code}: {said}"),
                retry_after: None,
                hint: self.ask_version(),
            },
            code => match &self.proxy {
                Some(proxy) if code == 407 => {
                    let (server, hint) = (self.server.to_string(), self.ask_version());
                    let reason = "requires a user and a password, or does not accept those of its URL";
                    ClusterError::Unreachable { context, server, reason: format!("the proxy {proxy} {reason}"), hint }
                }
                _ => ClusterError::Protocol { context, reason: format!("{code}: {said}") },
            },
        }
    }

    /// Returns the error for a failed sign-in.
    pub(in crate::k8s) fn not_signed_in(&self, failure: Failure) -> ClusterError {
        let context = self.context.clone();
        let hint = failure.hint.unwrap_or_else(|| format!("{} auth whoami", self.kubectl()));
        ClusterError::Credentials { context, reason: failure.reason, hint: Some(hint) }
    }

    /// Translates an error of a connection that was made with this credential.
    pub(in crate::k8s) fn broken(
        &self,
        error: &(dyn std::error::Error + 'static),
        credential: &Credential,
    ) -> ClusterError {
        match credential.identity.is_some() && reach::is_about_identity(error) {
            true => self.not_signed_in(Failure::new(reach::reason(error, &self.server, self.proxy.as_deref()))),
            false => self.unreachable(error),
        }
    }

    /// Returns the error for a server that could not be reached.
    pub fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> ClusterError {
        let reason = reach::reason(error, &self.server, self.proxy.as_deref());
        let (context, server) = (self.context.clone(), self.server.to_string());
        ClusterError::Unreachable { context, server, reason, hint: self.ask_version() }
    }

    /// Returns the error for a missing answer.
    pub fn timed_out(&self, doing: String, after: Duration) -> ClusterError {
        ClusterError::TimedOut { context: self.context.clone(), doing, after, hint: self.ask_version() }
    }

    fn ask_version(&self) -> String {
        format!("{} version", self.kubectl())
    }
}

/// Returns whether the message says that a TLS server got plain HTTP.
fn is_tls_wanted(message: &str) -> bool {
    ["HTTP request to an HTTPS server", "plain HTTP request was sent to HTTPS", "plain HTTP to an SSL-enabled"]
        .iter()
        .any(|said| message.contains(said))
}

/// Returns whether a 404 is about a missing object. A 404 of a gateway, or for an unknown API path, is not.
pub(super) fn is_about_object(status: &Status) -> bool {
    let is_read = status.reason != NO_STATUS;
    status.code == 404 && is_read && !status.message.contains("could not find the requested resource")
}

/// Returns whether the message of a Status comes from an admission webhook or a ValidatingAdmissionPolicy. Their status
/// is 400 and 422 by default, and may be any other.
pub fn is_of_policy(message: &str) -> bool {
    message.contains("denied the request") || message.contains("denied request:")
}

/// User, verb and resource in the message of a 403, such as `User "ana" cannot get resource "services" in API group ""
/// ...`
#[derive(Debug, PartialEq, Eq)]
struct Denial {
    user: String,
    verb: String,
    resource: String,
}

impl Denial {
    fn of(message: &str) -> Option<Self> {
        let (_, rest) = message.split_once("User \"")?;
        let (user, rest) = rest.split_once("\" cannot ")?;
        let (verb, rest) = rest.split_once(" resource \"")?;
        let (resource, _) = rest.split_once('"')?;
        Some(Self { user: printable(user), verb: printable(verb), resource: printable(resource) })
    }
}

/// Returns the part of a server's message that a user gets to see.
fn shown(message: &str) -> String {
    printable(message).chars().take(LONGEST_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_a_403_tells_who_may_not_do_what() {
        let message = "pods \"web-1\" is forbidden: User \"ana\" cannot create resource \"pods/portforward\" in API group \"\" in the namespace \"shop\"";
        let wanted = Denial { user: "ana".into(), verb: "create".into(), resource: "pods/portforward".into() };
        assert_eq!(Denial::of(message), Some(wanted));
        assert_eq!(Denial::of("no"), None);
    }

    #[test]
    fn only_an_object_can_be_missing() {
        let status = |message: &str, reason: &str| Status::failure(message, reason).with_code(404);
        assert!(is_about_object(&status("services \"web\" not found", "NotFound")));
        assert!(!is_about_object(&status("the server could not find the requested resource", "NotFound")));
        assert!(!is_about_object(&status("no such cluster", "Failed to parse error data")));
        assert!(!is_about_object(&status("services \"web\" is forbidden", "Forbidden").with_code(403)));
    }

    #[test]
    fn a_long_page_of_a_gateway_does_not_fill_the_terminal() {
        assert_eq!(shown(&"<p>\u{1b}[2J\n".repeat(100_000)).len(), LONGEST_MESSAGE);
    }
}
