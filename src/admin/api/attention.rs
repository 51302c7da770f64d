//! Problems that need a person. The dashboard and `adit top` show this list first.

use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::answers::SignIn;
pub use crate::config::shell::quoted;
use crate::{
    admin::api::source::{Facts, Source},
    config::{ContextName, KubeconfigPaths, PortRef, Workload, shell::adit},
    k8s::client::Health,
    routing::{Router, Target},
    tunnel::TunnelSnapshot,
};

/// How long a Service without a ready pod is shown after the last request for it.
const RECENT: Duration = Duration::from_secs(300);

/// Maximum number of such Services.
const MOST_IN_VAIN: usize = 10;

/// A sign-in that needs a person is shown if it ends within this time.
const ENDS_SOON: Duration = Duration::from_secs(600);

/// Something that does not mend itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Attention {
    /// `config`, `sign-in`, `context`, `tunnel`, `not-ready` or `local`.
    pub kind: String,
    pub title: String,
    pub cause: Option<String>,
    /// Advice: the next step for the user.
    pub hint: Option<String>,
    /// A command for a shell that repairs it, or finds out more.
    pub command: Option<String>,
    /// The id of the tunnel, where it is about one.
    pub tunnel: Option<String>,
}

/// Returns all problems; those that affect most come first.
pub fn of(source: &Source, tunnels: &[TunnelSnapshot], sign_ins: &[SignIn]) -> Vec<Attention> {
    let (facts, router) = (source.facts(), source.router());
    let mut all: Vec<Attention> = of_config(&facts).into_iter().collect();
    all.extend(sign_ins.iter().map(|sign_in| of_sign_in(sign_in, &router.http_contexts.kubeconfig)));
    all.extend(tunnels.iter().filter(|tunnel| tunnel.state == "failed").map(|tunnel| of_tunnel(tunnel, &router)));
    let in_vain = source.journal().wanted_in_vain(RECENT, MOST_IN_VAIN);
    all.extend(in_vain.iter().map(|host| {
        let host = host.rsplit_once(':').map_or(&**host, |(host, _)| host);
        Attention {
            kind: "not-ready".to_owned(),
            title: format!("{host} has no ready pod"),
            cause: Some("it was asked for in the last five minutes, and no pod became ready in time".to_owned()),
            command: Some(format!("{} {}", adit("doctor", &router.http_contexts.kubeconfig), quoted(host))),
            ..Attention::default()
        }
    }));
    all.extend(
        router.http_contexts.namespaces.keys().filter_map(|name| of_context(name, source.health(name)?, &router)),
    );
    let locals = || facts.local.iter().map(|(_, local)| local);
    let waits = locals().filter(|local| local.public.is_none());
    all.extend(waits.filter_map(|local| {
        Some(Attention {
            kind: "local".to_owned(),
            title: format!("{} is not reachable through relay {}", local.entry(), local.relay),
            cause: Some(local.reason.clone()?),
            ..Attention::default()
        })
    }));
    all.extend(locals().filter(|local| local.hint.is_some()).map(|local| Attention {
        kind: "local".to_owned(),
        title: format!("the service on local port {} refuses the Host header of its visitors", local.port),
        cause: local.public.as_ref().map(|public| format!("it does not know the name of {public}")),
        hint: local.hint.clone(),
        ..Attention::default()
    }));
    all
}

fn of_config(facts: &Facts) -> Option<Attention> {
    let reason = facts.rejected.clone()?;
    Some(Attention {
        kind: "config".to_owned(),
        title: "the changed configuration file is not in use".to_owned(),
        cause: Some(reason),
        hint: Some(format!("adit goes on with the configuration of {}", facts.loaded_at)),
        command: Some(match &facts.config {
            Some(file) => format!("adit check --config {}", quoted(&file.display().to_string())),
            None => "adit check".to_owned(),
        }),
        tunnel: None,
    })
}

/// Returns a time as the clock of this machine shows it.
fn clock(at: SystemTime) -> String {
    let at = jiff::Timestamp::try_from(at).unwrap_or_default();
    at.to_zoned(jiff::tz::TimeZone::system()).strftime("%H:%M:%S").to_string()
}

/// Returns the problem of a context: its API server does not answer, or a person has to sign in again soon.
fn of_context(name: &ContextName, health: Health, router: &Router) -> Option<Attention> {
    let command = Some(format!("{} --context {}", adit("doctor", &router.http_contexts.kubeconfig), quoted(name)));
    let kind = "context".to_owned();
    if let Some(since) = health.lost_since {
        let title = format!("the API server of context {name} does not answer");
        let cause = Some(format!("since {}", clock(since)));
        return Some(Attention { kind, title, cause, command, ..Attention::default() });
    }
    let left = health.sign_in_ends?.duration_since(SystemTime::now()).ok()?;
    (health.asks_people && left < ENDS_SOON).then(|| Attention {
        kind,
        title: format!("the sign-in of context {name} ends in {} min", left.as_secs().div_ceil(60)),
        cause: Some("the next request after that asks for another one".to_owned()),
        command,
        ..Attention::default()
    })
}

fn of_sign_in(sign_in: &SignIn, kubeconfig: &KubeconfigPaths) -> Attention {
    let SignIn { user, issuer, seconds, error, said, .. } = sign_in;
    let title = match error {
        None => format!("signing in with {issuer}: {user}"),
        Some(_) => format!("not signed in: {user}"),
    };
    let wait = match error {
        None => format!("it has run for {seconds} s"),
        Some(_) if *seconds > 0 => format!("another attempt is possible in {seconds} s"),
        Some(_) => "the next request tries again".to_owned(),
    };
    let hint = said.iter().cloned().chain([wait]).collect::<Vec<_>>().join("\n");
    Attention {
        kind: "sign-in".to_owned(),
        title,
        cause: error.clone(),
        hint: Some(hint),
        command: Some(adit("doctor", kubeconfig)),
        tunnel: None,
    }
}

fn of_tunnel(tunnel: &TunnelSnapshot, router: &Router) -> Attention {
    Attention {
        kind: "tunnel".to_owned(),
        title: format!("{} cannot be reached", tunnel.id),
        cause: tunnel.last_error.clone(),
        hint: tunnel.hint.clone(),
        command: tunnel.target.as_ref().and_then(|target| doctor(target, router)),
        tunnel: Some(tunnel.id.to_string()),
    }
}

/// Returns the command that diagnoses why a target cannot be reached.
fn doctor(target: &Target, router: &Router) -> Option<String> {
    let pods = target.pods().filter(|pods| pods.jump.is_none())?;
    let name = match &pods.workload {
        Workload::Service(service) => service.to_string(),
        Workload::Pod(pod) | Workload::PodOfService { pod, .. } => format!("pod/{pod}"),
        // adit does not know here which Service or pod has the address.
        Workload::Address(_) => return None,
    };
    let port = match &pods.port {
        PortRef::Number(port) => format!(":{port}"),
        PortRef::Name(port) => format!(":{port}"),
        PortRef::Auto | PortRef::Https => String::new(),
    };
    let context = match router.default_context() == Some(&pods.cluster.context) {
        true => String::new(),
        false => format!(" --context {}", quoted(&pods.cluster.context)),
    };
    let target = quoted(&format!("{name}.{}{port}", pods.namespace));
    Some(format!("{}{context} {target}", adit("doctor", &pods.cluster.kubeconfig)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_sign_in_says_when_the_next_may_begin() {
        let sign_in = SignIn {
            user: "user \"ana\"".into(),
            issuer: "'aws'".into(),
            state: "failed".into(),
            seconds: 7,
            error: Some("expired".into()),
            said: vec!["open https://sso.example".into()],
        };
        let found = of_sign_in(&sign_in, &KubeconfigPaths::default());
        assert_eq!(
            (found.title.as_str(), found.command.as_deref()),
            ("not signed in: user \"ana\"", Some("adit doctor"))
        );
        assert_eq!(found.hint.unwrap(), "open https://sso.example\nanother attempt is possible in 7 s");
    }
}
