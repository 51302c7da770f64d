//! What it means when an API server gives no answer to use.

use kube::client::AuthError;

use super::{Cluster, reach};
use crate::{
    config::{ContextName, Namespace},
    k8s::ClusterError,
};

impl Cluster {
    /// Returns what an error of a request means.
    pub(super) fn translate(&self, namespace: &Namespace, error: kube::Error) -> ClusterError {
        let context = self.context.clone();
        match error {
            kube::Error::Api(status) => self.refusal(status.code, &status.message, namespace),
            kube::Error::Auth(error) => auth_error(&context, &error),
            kube::Error::Service(error) => match error.downcast::<AuthError>() {
                Ok(error) => auth_error(&context, &error),
                Err(error) => self.unreachable(&*error),
            },
            kube::Error::HyperError(error) => self.unreachable(&error),
            other => ClusterError::Protocol { context, reason: other.to_string() },
        }
    }

    /// Returns what a status code and the message of a Status object mean.
    pub fn refusal(&self, code: u16, message: &str, namespace: &Namespace) -> ClusterError {
        let context = self.context.clone();
        match code {
            401 => ClusterError::Credentials {
                reason: "the API server does not accept the credentials (401)".to_owned(),
                hint: Some(format!("kubectl --context {context} auth whoami")),
                context,
            },
            403 => match Denial::of(message) {
                Some(denial) => ClusterError::Forbidden {
                    user: denial.user,
                    verb: denial.verb,
                    resource: denial.resource,
                    namespace: namespace.clone(),
                    context,
                },
                None => ClusterError::Protocol { context, reason: format!("403: {message}") },
            },
            429 | 500..=599 => ClusterError::Unavailable {
                context,
                reason: format!("{code}: {}", printable(message)),
                retry_after: None,
            },
            code => ClusterError::Protocol { context, reason: format!("{code}: {}", printable(message)) },
        }
    }

    /// Returns that the server could not be reached, and why.
    pub fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> ClusterError {
        let reason = reach::reason(error, &self.server, self.proxy.as_deref());
        ClusterError::Unreachable { context: self.context.clone(), server: self.server.to_string(), reason }
    }
}

/// Who may not do what, from the message of a 403: `User "ana" cannot get resource "services" in API group "" ...`
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

pub(super) fn sign_in_error(context: &ContextName, error: kube::Error) -> ClusterError {
    match error {
        kube::Error::Auth(error) => auth_error(context, &error),
        other => ClusterError::Credentials { context: context.clone(), reason: other.to_string(), hint: None },
    }
}

pub(super) fn auth_error(context: &ContextName, error: &AuthError) -> ClusterError {
    let reason = match error {
        AuthError::AuthExecRun { cmd, out } => {
            let program = cmd.split('"').nth(1).unwrap_or(cmd).rsplit('/').next().unwrap_or(cmd);
            let said = String::from_utf8_lossy(&out.stderr);
            let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
            let last = printable(&lines[lines.len().saturating_sub(3)..].join(" / "));
            format!("'{program}' failed ({}): {last}", out.status)
        }
        AuthError::AuthExecStart(error) => format!("the credential plugin does not start: {error}"),
        other => printable(&other.to_string()),
    };
    ClusterError::Credentials {
        context: context.clone(),
        reason,
        hint: Some(format!("kubectl --context {context} auth whoami")),
    }
}

/// Returns text of others without control characters: it may end in a terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect::<String>()
        .trim()
        .to_owned()
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
    fn escapes_in_the_text_of_others_do_not_reach_a_terminal() {
        assert_eq!(printable("a\x1b[31mb\r\nc\n"), "a [31mb  c");
    }
}
