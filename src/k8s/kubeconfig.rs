//! Kubeconfig files: read, merged, and prepared for use.

mod access;
mod check;
mod impersonation;
mod load;
mod merge;
mod plugin;
mod server;
mod stored;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::SystemTime};

pub use self::access::Access;
use self::merge::Merged;

use crate::{
    config::{ContextName, KubeconfigPaths, Namespace},
    k8s::{ClusterError, exec_path::ExecPath},
    routing::{ClusterId, Contexts},
};

/// The only context where there is no kubeconfig: the cluster that adit runs in.
pub const IN_CLUSTER: &str = "in-cluster";

/// Times and sizes of the files: tells whether they changed, without reading them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(Vec<Option<(SystemTime, u64)>>);

impl Fingerprint {
    pub fn of(paths: &KubeconfigPaths) -> Self {
        let one = |path: &PathBuf| path.metadata().and_then(|file| Ok((file.modified()?, file.len()))).ok();
        Self(paths.0.iter().map(one).collect())
    }
}

/// Returns the contexts of the files, or why there are none.
pub fn contexts(paths: &Arc<KubeconfigPaths>) -> Contexts {
    if paths.0.is_empty() {
        return match (kube::Config::incluster(), ContextName::new(IN_CLUSTER)) {
            (Ok(config), Ok(context)) => Contexts {
                kubeconfig: paths.clone(),
                current: Some(context.clone()),
                namespaces: BTreeMap::from([(context, Namespace::new(config.default_namespace))]),
                problem: None,
            },
            _ => Contexts {
                kubeconfig: paths.clone(),
                problem: Some("there is no kubeconfig, and adit does not run in a cluster".to_owned()),
                ..Contexts::default()
            },
        };
    }
    match Merged::read(paths) {
        Ok(Merged { kubeconfig, .. }) => Contexts {
            kubeconfig: paths.clone(),
            current: kubeconfig.current_context.and_then(|name| ContextName::new(name).ok()),
            namespaces: kubeconfig
                .contexts
                .into_iter()
                // One without a name cannot be meant.
                .filter_map(|named| {
                    let namespace =
                        named.context.and_then(|context| context.namespace).filter(|namespace| !namespace.is_empty());
                    Some((
                        ContextName::new(named.name).ok()?,
                        namespace.map_or(Ok(Namespace::default()), Namespace::new),
                    ))
                })
                .collect(),
            problem: None,
        },
        Err(reason) => Contexts { kubeconfig: paths.clone(), problem: Some(reason), ..Contexts::default() },
    }
}

/// Returns what is needed to reach a cluster, with its credential plugin found.
///
/// # Errors
/// The files have no such context, or something that it needs is missing or of no use.
pub fn load(id: &ClusterId, exec_path: &ExecPath) -> Result<Access, ClusterError> {
    if id.kubeconfig.0.is_empty() {
        return Access::in_cluster();
    }
    let merged = Merged::read(&id.kubeconfig).map_err(|reason| ClusterError::Kubeconfig { reason })?;
    Access::of(&merged, &id.context, exec_path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn kubeconfig(contexts: &str, current: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {current}\nclusters: [{{name: c, cluster: {{server: \"https://127.0.0.1:1\"}}}}]\n\
             users: [{{name: u, user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, command: no-such-plugin, interactiveMode: Never, installHint: get it}}}}}}]\n\
             contexts: {contexts}\n"
        )
    }

    fn id(paths: Vec<PathBuf>, context: &str) -> ClusterId {
        ClusterId { kubeconfig: Arc::new(KubeconfigPaths(paths)), context: context.parse().unwrap() }
    }

    #[test]
    fn files_are_merged_and_the_first_current_context_counts() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = ["a", "missing", "b"].iter().map(|name| folder.path().join(name)).collect();
        fs::write(&paths[0], kubeconfig("[{name: one, context: {cluster: c, user: u, namespace: shop}}]", "one"))
            .unwrap();
        fs::write(&paths[2], kubeconfig("[{name: two, context: {cluster: c, user: u}}]", "two")).unwrap();
        let contexts = contexts(&Arc::new(KubeconfigPaths(paths)));
        assert_eq!(contexts.current, Some("one".parse().unwrap()));
        assert_eq!(contexts.namespaces[&"one".parse().unwrap()], Ok("shop".parse().unwrap()));
        assert_eq!(contexts.namespaces[&"two".parse().unwrap()], Ok(Namespace::default()));
    }

    #[test]
    fn a_broken_file_is_a_problem_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        fs::write(&path, "contexts: [").unwrap();
        assert!(contexts(&Arc::new(KubeconfigPaths(vec![path.clone()]))).problem.unwrap().contains("config"));
        fs::remove_file(&path).unwrap();
        assert!(contexts(&Arc::new(KubeconfigPaths(vec![path]))).problem.unwrap().ends_with("does not exist"));
    }

    #[test]
    fn a_missing_plugin_and_an_unknown_context_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        fs::write(&path, kubeconfig("[{name: one, context: {cluster: c, user: u}}]", "one")).unwrap();
        let exec_path = ExecPath::new(&[]);
        let missing = load(&id(vec![path.clone()], "one"), &exec_path).err().unwrap();
        assert_eq!(missing.to_string(), "cannot sign in to context one: 'no-such-plugin' was not found on PATH");
        assert_eq!(missing.hint().unwrap(), "install it, or add its folder to exec_path\nget it");
        let unknown = load(&id(vec![path], "two"), &exec_path).err().unwrap();
        assert_eq!(unknown.hint().unwrap(), "the contexts are one");
    }
}
