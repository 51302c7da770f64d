//! Checks kubeconfig files, contexts, and credentials.

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::{Timestamp, Unit};
use tokio::time::timeout;

use super::{
    report::{Check, Group, Status, quoted},
    scope::{Of, Scope, joined},
    service,
};
use crate::{
    config::{ContextName, KubeconfigPaths},
    k8s::{ClusterError, client::Cluster},
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
            Check::new(ID, GROUP, Status::Fail, format!("there is no context {context}, which is the current one"))
                .fix("choose one", choose())
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
        None => Check::new(ID, GROUP, Status::Ok, "the name of every context fits into a hostname"),
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
    let signed_in = timeout(PLUGIN_WITHIN, cluster.sign_in_expires()).await;
    let check = match signed_in {
        Ok(Ok(None)) => Check::new(ID, GROUP, Status::Ok, "the user has credentials without an expiry time"),
        Ok(Ok(Some(expires))) => {
            let at = Timestamp::try_from(expires).unwrap_or_default();
            let left = at.duration_since(Timestamp::now()).as_secs();
            let at = at.round(Unit::Second).unwrap_or(at);
            match left {
                ..=0 => Check::new(ID, GROUP, Status::Fail, format!("the credentials have expired at {at}"))
                    .fix("sign in again", Some(by_hand)),
                _ => Check::new(ID, GROUP, Status::Ok, format!("the credentials are valid until {at}")),
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

/// Returns a failed check for an error.
pub fn of_error(id: &'static str, group: Group, error: &ClusterError) -> Check {
    Check::new(id, group, Status::Fail, error.to_string()).detail(error.cause()).hint(error.hint())
}
