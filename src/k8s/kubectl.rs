//! kubectl and adit commands in hints, and the contexts for which kubectl has no names.

use crate::{config::shell, routing::ClusterId};

/// Name of the context for the cluster that adit runs in, if no kubeconfig names a current context.
pub const IN_CLUSTER: &str = "in-cluster";

/// Name of what kubectl uses if no file has a current context: the context, cluster and user with the name `""`, if there
/// are any.
pub const UNNAMED: &str = "unnamed-context";

/// Returns the start of a kubectl command to paste. Names of contexts come from files of others, so they are quoted.
pub fn kubectl(id: &ClusterId) -> String {
    match id.context.as_str() {
        // kubectl has no names for these contexts.
        IN_CLUSTER => "kubectl".to_owned(),
        UNNAMED => shell::kubectl(&id.kubeconfig),
        name => format!("{} --context {}", shell::kubectl(&id.kubeconfig), shell::quoted(name)),
    }
}

/// Returns the start of an adit command to paste, with the same context.
pub fn adit(id: &ClusterId) -> String {
    let files = shell::named(&id.kubeconfig).map(|list| format!(" --kubeconfig {}", shell::quoted(&list)));
    let files = files.unwrap_or_default();
    match id.context.as_str() {
        IN_CLUSTER => "adit".to_owned(),
        UNNAMED => format!("adit{files}"),
        name => format!("adit --context {}{files}", shell::quoted(name)),
    }
}
