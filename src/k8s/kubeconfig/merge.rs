//! Merges several kubeconfig files: if entries have the same name, the first file wins, as in client-go.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use kube::config::{Context, Kubeconfig};

use super::load::Files;
use crate::{config::KubeconfigPaths, k8s::kubectl::UNNAMED};

/// Merged files, with the file of each entry.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub kubeconfig: Kubeconfig,
    /// Files that exist.
    files: Vec<PathBuf>,
    clusters: HashMap<String, PathBuf>,
    users: HashMap<String, PathBuf>,
}

impl Merged {
    /// Reads the files. Skips missing files if at least one exists.
    ///
    /// # Errors
    /// Fails if no file exists or one is invalid. The error says which, and why.
    pub(super) fn read(paths: &KubeconfigPaths, files: &Files) -> Result<Self, String> {
        let mut merged: Option<Self> = None;
        for path in paths.0.iter().filter(|path| !path.as_os_str().is_empty()) {
            match files.read(path) {
                Ok(Some(next)) => merged = Some(merged.unwrap_or_default().with(next, path)),
                Ok(None) => {}
                Err(reason) => return Err(format!("{}: {reason}", path.display())),
            }
        }
        merged.ok_or_else(|| format!("{} does not exist", paths))
    }

    fn with(mut self, next: Kubeconfig, path: &Path) -> Self {
        self.files.push(path.to_owned());
        for named in &next.clusters {
            self.clusters.entry(named.name.clone()).or_insert_with(|| path.to_owned());
        }
        for named in &next.auth_infos {
            self.users.entry(named.name.clone()).or_insert_with(|| path.to_owned());
        }
        let before = self.kubeconfig.clone();
        // It would fail only on different kinds or versions, and these were removed when the file was read.
        self.kubeconfig = self.kubeconfig.merge(next).unwrap_or(before);
        self
    }

    /// Returns the name of the current context.
    pub(super) fn current(&self) -> Option<String> {
        self.kubeconfig.current_context.clone().or_else(|| self.unnamed().map(|_| UNNAMED.to_owned()))
    }

    /// Returns the contexts with their names.
    pub(super) fn contexts(&self) -> impl Iterator<Item = (String, Context)> + '_ {
        let named = self.kubeconfig.contexts.iter().filter(|named| !named.name.is_empty());
        let named = named.map(|named| (named.name.clone(), named.context.clone().unwrap_or_default()));
        named.chain(self.unnamed().map(|context| (UNNAMED.to_owned(), context)))
    }

    /// Returns a context by its name.
    pub(super) fn context(&self, name: &str) -> Option<Context> {
        self.contexts().find_map(|(found, context)| (found == name).then_some(context))
    }

    /// Returns the context for [`UNNAMED`]. `None`: it would not be used, or another context has that name.
    fn unnamed(&self) -> Option<Context> {
        let Kubeconfig { contexts, clusters, current_context, .. } = &self.kubeconfig;
        let named = |name: &str| contexts.iter().find(|named| named.name == name);
        match named("") {
            _ if current_context.is_some() || named(UNNAMED).is_some() => None,
            Some(context) => Some(context.context.clone().unwrap_or_default()),
            None => clusters.iter().any(|named| named.name.is_empty()).then(Context::default),
        }
    }

    /// Returns the files as text for messages.
    pub(super) fn files(&self) -> String {
        KubeconfigPaths(self.files.clone()).to_string()
    }

    /// Returns the file of a user.
    pub(super) fn file_of_user(&self, name: &str) -> Option<&PathBuf> {
        self.users.get(name)
    }

    /// Returns a cluster and its file as text for messages: `cluster "c" of /home/ana/.kube/config`.
    pub(super) fn cluster(&self, name: &str) -> String {
        named("cluster", name, &self.clusters)
    }

    /// Returns a user and its file as text for messages.
    pub(super) fn user(&self, name: &str) -> String {
        named("user", name, &self.users)
    }
}

fn named(kind: &str, name: &str, files: &HashMap<String, PathBuf>) -> String {
    match files.get(name) {
        Some(path) => format!("{kind} {name:?} of {}", path.display()),
        None => format!("{kind} {name:?}"),
    }
}
