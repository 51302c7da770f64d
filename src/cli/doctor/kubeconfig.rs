//! Checks kubeconfig files, contexts, and credentials.

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::{Timestamp, Unit};
use tokio::time::timeout;

use super::{
    report::{Check, Group, Status, quoted},
    scope::{Of, Scope},
    service,
};
use crate::{
    config::{ContextName, KubeconfigPaths, near::near, shell::joined},
    k8s::{
        ClusterError,
        client::{Cluster, SignedIn},
    },
    routing::alias,
};

const GROUP: Group = Group::Kubeconfig;

/// Time limit of a credential plugin. A sign-in by a person takes longer; the checks do not wait for it.
pub const PLUGIN_WITHIN: Duration = Duration::from_secs(5);

/// Checks the files and their contexts.
pub fn files(scope: &Scope) -> Vec<Check> {
    let contexts = &scope.router.http_contexts;
    let paths = &contexts.kubeconfig.0;
    if let Some(problem) = &contexts.problem {
        let default = etcetera::home_dir().ok().map(|home| home.join(".kube/config"));
        let fix = match paths.first() {
            Some(path) if path.exists() => Some(format!("{} config view", scope.kubectl())),
            _ => default.filter(|path| path.exists()).map(|_| "export KUBECONFIG=~/.kube/config".to_owned()),
        };
        let says = format!("the kubeconfig cannot be read: {problem}");
        return vec![
            Check::new("kubeconfig-files", GROUP, Status::Fail, says)
                .fix("correct the file, or set KUBECONFIG to another one", fix),
        ];
    }
    let (present, missing): (Vec<PathBuf>, Vec<PathBuf>) = paths.iter().cloned().partition(|path| path.exists());
    let files = match (paths.is_empty(), missing.is_empty()) {
        (true, _) => Check::new("kubeconfig-files", GROUP, Status::Ok, "adit runs in a pod, as its service account"),
        (_, true) => {
            Check::new("kubeconfig-files", GROUP, Status::Ok, format!("the kubeconfig is {}", contexts.kubeconfig))
        }
        (_, false) => {
            Check::new("kubeconfig-files", GROUP, Status::Warn, format!("{} does not exist", KubeconfigPaths(missing)))
                .detail(Some("kubectl passes over files that do not exist, and so does adit"))
                .fix("take it out of $KUBECONFIG", Some(format!("export KUBECONFIG={}", quoted(&joined(&present)))))
        }
    };
    vec![files, current(scope), names(scope)]
}

fn current(scope: &Scope) -> Check {
    const ID: &str = "current-context";
    let contexts = &scope.router.http_contexts;
    let choose = || {
        let known = contexts.namespaces.keys().next()?;
        Some(format!("{} config use-context {}", scope.kubectl(), quoted(known)))
    };
    match scope.router.default_context() {
        None => {
            Check::new(ID, GROUP, Status::Fail, "the kubeconfig has no current context").fix("choose one", choose())
        }
        Some(context) if !contexts.namespaces.contains_key(context) => {
            let config = &scope.router.config;
            let named_by = match (&scope.globals.context, &config.default_context) {
                (Some(_), _) => "--context names".to_owned(),
                (None, Some(_)) => match &config.source {
                    Some(file) => format!("default_context of {} names", file.display()),
                    None => "default_context names".to_owned(),
                },
                (None, None) => "is the current one of the kubeconfig".to_owned(),
            };
            let says = format!("there is no context {context}, which {named_by}");
            let check = Check::new(ID, GROUP, Status::Fail, says);
            let known: Vec<&str> = contexts.namespaces.keys().map(|name| name.as_str()).collect();
            let near = near(context, known.iter().copied(), |name| name);
            match (config.default_context.is_some(), near.as_slice()) {
                // A change of the kubeconfig's current context would not help.
                (true, []) if known.is_empty() => check.fix("the kubeconfig has no contexts: set KUBECONFIG", None),
                (true, []) => check.fix(format!("the contexts are {}", known.join(", ")), None),
                (true, near) => check.fix(format!("did you mean {}?", near.join(" or ")), None),
                (false, _) => check.fix("choose one", choose()),
            }
        }
        Some(context) => Check::new(ID, GROUP, Status::Ok, format!("the current context is {context}")),
    }
}

/// Checks which contexts have a name in hostnames.
fn names(scope: &Scope) -> Check {
    const ID: &str = "context-names";
    let contexts = &scope.router.http_contexts;
    let is_odd =
        |context: &&ContextName| Some(*context) != contexts.current.as_ref() && scope.router.name_of(context).is_none();
    let odd: Vec<&str> = contexts.namespaces.keys().filter(is_odd).map(|context| context.as_str()).collect();
    match odd.first() {
        None => Check::new(
            ID,
            GROUP,
            Status::Ok,
            "hostnames can name every context but the current one, which needs no name",
        ),
        Some(first) => {
            let short = alias::free(first, contexts);
            let command = format!("{} config rename-context {} {short}", scope.kubectl(), quoted(first));
            Check::new(ID, GROUP, Status::Warn, format!("{} does not fit into a hostname", odd.join(", ")))
                .fix(format!("{}, or rename it", alias::advice(first, contexts)), Some(command))
        }
    }
}

/// Checks whether the user of a context can sign in. Returns the cluster if so.
pub async fn context(scope: &Scope, of: &Of) -> (Vec<Check>, Option<Arc<Cluster>>) {
    const ID: &str = "credentials";
    let context = of.context();
    let by_hand = format!("{} get --raw /version", scope.kubectl_of(&of.id.context));
    let cluster = match scope.clusters.get(&of.id).await {
        Ok(cluster) => cluster,
        Err(error) => {
            let id = if matches!(error, ClusterError::Credentials { .. }) { ID } else { "context" };
            return (vec![of_error(id, GROUP, &error).of_context(context)], None);
        }
    };
    let signed_in = timeout(PLUGIN_WITHIN, cluster.signed_in()).await;
    let check = match signed_in {
        Ok(Ok(signed_in)) => {
            let check = of_user(signed_in);
            match check.status {
                Status::Fail if scope.clusters.sign_in(&of.id).is_none() => {
                    check.fix("renew it with the tool that has written the kubeconfig", None)
                }
                Status::Fail => check.fix("sign in again", Some(by_hand)),
                _ => check,
            }
        }
        Ok(Err(error)) => of_error(ID, GROUP, &error),
        Err(_) => {
            let who = scope.clusters.sign_in(&of.id).map_or_else(|| "the sign-in".to_owned(), |report| report.issuer);
            let says = format!("{who} has given no credential within {} s", PLUGIN_WITHIN.as_secs());
            Check::new(ID, GROUP, Status::Fail, says).fix("sign in by hand", Some(by_hand))
        }
    };
    let is_signed_in = check.status != Status::Fail;
    let checks = [Some(check), service::plugin(scope, of)].into_iter().flatten();
    (checks.map(|check| check.of_context(context)).collect(), is_signed_in.then_some(cluster))
}

fn of_user(signed_in: SignedIn) -> Check {
    let (status, says) = match signed_in {
        SignedIn::Anonymous => (Status::Ok, "the user has no credentials".to_owned()),
        SignedIn::Unlimited => (Status::Ok, "the user has credentials without an expiry time".to_owned()),
        SignedIn::Until { what, at } => {
            let at = Timestamp::try_from(at).unwrap_or(Timestamp::MAX);
            let (is, has) = if what.ends_with('s') { ("are", "have") } else { ("is", "has") };
            let shown = at.round(Unit::Second).unwrap_or(at);
            match at <= Timestamp::now() {
                true => (Status::Fail, format!("the {what} {has} expired at {shown}")),
                false => (Status::Ok, format!("the {what} {is} valid until {shown}")),
            }
        }
    };
    Check::new("credentials", GROUP, status, says)
}

/// Returns a failed check for an error.
pub fn of_error(id: &'static str, group: Group, error: &ClusterError) -> Check {
    Check::new(id, group, Status::Fail, error.to_string()).detail(error.cause()).hint(error.hint())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use clap::Parser;

    use super::*;
    use crate::{cli::Cli, config::validate};

    #[test]
    fn a_context_that_does_not_exist_says_who_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let of = |selected: &str, config: &str, line: &[&str]| {
            let text = format!(
                "{{apiVersion: v1, kind: Config, current-context: {selected}, contexts: [{{name: test, context: {{cluster: c, user: u}}}}, \
                 {{name: production, context: {{cluster: c, user: u}}}}], clusters: [{{name: c, cluster: {{server: 'http://127.0.0.1:1'}}}}], \
                 users: [{{name: u, user: {{}}}}]}}"
            );
            std::fs::write(&kubeconfig, text).unwrap();
            let config = format!("{config}http: {{k8s: {{kubeconfig: '{}'}}}}\n", kubeconfig.display());
            let mut config = validate::parse(std::path::Path::new("adit.yaml"), config.as_bytes()).unwrap();
            let globals = Cli::parse_from(line).globals;
            globals.overrides().unwrap().apply(&mut config);
            let (clusters, router) = crate::cli::router(config);
            let check = current(&Scope::new(clusters, router, &globals, None));
            let fix = check.fix.map(|fix| (fix.text, fix.command.is_some()));
            (check.says, fix)
        };
        let fix = |text: &str, has_command| Some((text.to_owned(), has_command));
        let says = |by: &str| format!("there is no context prod, which {by}");
        assert_eq!(
            of("test", "", &["adit", "--context", "prod"]),
            (says("--context names"), fix("did you mean production?", false))
        );
        assert_eq!(
            of("test", "default_context: prod\n", &["adit"]),
            (says("default_context of adit.yaml names"), fix("did you mean production?", false))
        );
        assert_eq!(of("prod", "", &["adit"]), (says("is the current one of the kubeconfig"), fix("choose one", true)));
        let (_, contexts) = of("test", "", &["adit", "--context", "qqq"]);
        assert_eq!(contexts, fix("the contexts are production, test", false));
    }

    #[test]
    fn credentials_that_have_expired_or_do_not_exist_are_named() {
        let of = |signed_in| {
            let check = of_user(signed_in);
            (check.status, check.says)
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
        let says = "the token has expired at 2020-09-13T12:26:40Z".to_owned();
        assert_eq!(of(SignedIn::Until { what: "token", at }), (Status::Fail, says));
        let at = SystemTime::now() + Duration::from_secs(60);
        let (status, says) = of(SignedIn::Until { what: "credentials", at });
        assert!(status == Status::Ok && says.starts_with("the credentials are valid until "), "{says}");
        assert_eq!(of(SignedIn::Anonymous).1, "the user has no credentials");
    }
}
