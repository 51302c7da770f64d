//! Kubeconfig files: read, merged, and prepared for use.

mod access;
mod check;
mod impersonation;
mod in_cluster;
mod kuberc;
mod load;
mod merge;
mod plugin;
mod server;
mod shape;
mod stored;

use std::{path::PathBuf, sync::Arc, time::SystemTime};

pub use self::{access::Access, load::Files};
use self::{in_cluster::Pod, merge::Merged};

use crate::{
    config::{ContextName, KubeconfigPaths, Namespace},
    k8s::{ClusterError, exec_path::ExecPath, kubectl::IN_CLUSTER},
    routing::{ClusterId, Contexts},
};

const NOT_IN_CLUSTER: &str = "there is no kubeconfig, and adit does not run in a cluster";

/// Times and sizes of files, to detect changes without reading them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint(Vec<(PathBuf, Option<(SystemTime, u64)>)>);

impl Fingerprint {
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        let one = |path: &PathBuf| {
            // A pipe can be read only once, and counts as unchanged.
            let file = path.metadata().ok().filter(|file| file.is_file())?;
            Some((file.modified().ok()?, file.len()))
        };
        Self(paths.into_iter().map(|path| (path.clone(), one(path))).collect())
    }

    pub fn is_current(&self) -> bool {
        *self == Self::of(self.0.iter().map(|(path, _)| path))
    }

    /// Adds other files.
    pub fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }
}

/// Returns the contexts of the files, or the problem with them.
pub fn contexts(paths: &Arc<KubeconfigPaths>, files: &Files) -> Contexts {
    contexts_in(&Pod::of_process(), paths, files)
}

fn contexts_in(pod: &Pod, paths: &Arc<KubeconfigPaths>, files: &Files) -> Contexts {
    let mut contexts = of_files(paths, files);
    if (paths.0.is_empty() || contexts.problem.is_none()) && pod.is_there() {
        let context = ContextName::new(IN_CLUSTER).expect("the name is a valid one");
        contexts.namespaces.entry(context.clone()).or_insert_with(|| pod.namespace());
        // As in kubectl: without a current context in a kubeconfig, the service account is used.
        contexts.current.get_or_insert(context);
        contexts.problem = None;
    }
    contexts
}

fn of_files(paths: &Arc<KubeconfigPaths>, files: &Files) -> Contexts {
    let broken = |reason: String| Contexts { kubeconfig: paths.clone(), problem: Some(reason), ..Contexts::default() };
    if paths.0.is_empty() {
        return broken(NOT_IN_CLUSTER.to_owned());
    }
    match Merged::read(paths, files) {
        Ok(merged) => Contexts {
            kubeconfig: paths.clone(),
            current: merged.current().and_then(|name| ContextName::new(name).ok()),
            namespaces: merged
                .contexts()
                .filter_map(|(name, context)| {
                    let namespace = context.namespace.filter(|namespace| !namespace.is_empty());
                    Some((ContextName::new(name).ok()?, namespace.map_or(Ok(Namespace::default()), Namespace::new)))
                })
                .collect(),
            problem: None,
        },
        Err(reason) => broken(reason),
    }
}

/// Returns the settings to reach a cluster, with its credential plugin found.
///
/// # Errors
/// Fails if the files have no such context, or if a part of it is missing or unusable.
pub fn load(id: &ClusterId, files: &Files, exec_path: &ExecPath) -> Result<Access, ClusterError> {
    let pod = Pod::of_process();
    if id.kubeconfig.0.is_empty() {
        return pod.access();
    }
    let merged = Merged::read(&id.kubeconfig, files).map_err(|reason| ClusterError::Kubeconfig { reason })?;
    match id.context.as_str() == IN_CLUSTER && merged.context(IN_CLUSTER).is_none() && pod.is_there() {
        true => pod.access(),
        false => Access::of(&merged, &id.context, exec_path),
    }
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
        let contexts = contexts(&Arc::new(KubeconfigPaths(paths)), &Files::default());
        assert_eq!(contexts.current, Some("one".parse().unwrap()));
        assert_eq!(contexts.namespaces[&"one".parse().unwrap()], Ok("shop".parse().unwrap()));
        assert_eq!(contexts.namespaces[&"two".parse().unwrap()], Ok(Namespace::default()));
    }

    #[test]
    fn the_policy_for_plugins_is_a_file_of_a_context_with_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let text = kubeconfig("[{name: one, context: {cluster: c, user: u}}]", "one");
        fs::write(&path, text.replace("no-such-plugin", "/bin/true")).unwrap();
        let access = load(&id(vec![path], "one"), &Files::default(), &ExecPath::new(&[])).unwrap();
        assert!(access.files.0.iter().any(|(file, _)| Some(file) == kuberc::path().as_ref()), "{:?}", access.files);
    }

    #[test]
    fn a_broken_file_is_a_problem_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        fs::write(&path, "contexts: [").unwrap();
        assert!(
            contexts(&Arc::new(KubeconfigPaths(vec![path.clone()])), &Files::default())
                .problem
                .unwrap()
                .contains("config")
        );
        fs::remove_file(&path).unwrap();
        assert!(
            contexts(&Arc::new(KubeconfigPaths(vec![path])), &Files::default())
                .problem
                .unwrap()
                .ends_with("does not exist")
        );
    }

    #[test]
    fn a_missing_plugin_and_an_unknown_context_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        fs::write(&path, kubeconfig("[{name: one, context: {cluster: c, user: u}}]", "one")).unwrap();
        let exec_path = ExecPath::new(&[]);
        let missing = load(&id(vec![path.clone()], "one"), &Files::default(), &exec_path).err().unwrap();
        assert_eq!(missing.to_string(), "cannot sign in to context one: 'no-such-plugin' was not found on PATH");
        assert_eq!(missing.hint().unwrap(), "install it, or add its folder to exec_path\nget it");
        let unknown = load(&id(vec![path], "two"), &Files::default(), &exec_path).err().unwrap();
        assert_eq!(unknown.hint().unwrap(), "the contexts are one");
    }
}
