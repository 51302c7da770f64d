//! Several kubeconfig files as one: of entries with one name that of the first file counts, as in client-go.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use kube::config::Kubeconfig;

use super::load::Files;
use crate::config::KubeconfigPaths;

/// The files together, and where each entry is from.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub kubeconfig: Kubeconfig,
    /// The files that exist.
    files: Vec<PathBuf>,
    clusters: HashMap<String, PathBuf>,
    users: HashMap<String, PathBuf>,
}

impl Merged {
    /// Reads the files. One that does not exist is passed over if another one does.
    ///
    /// # Errors
    /// None exists, or one is no kubeconfig: which, and why.
    pub(super) fn read(paths: &KubeconfigPaths, files: &Files) -> Result<Self, String> {
        let mut merged: Option<Self> = None;
        for path in paths.0.iter().filter(|path| !path.as_os_str().is_empty()) {
            match files.read(path) {
                Ok(Some(next)) => merged = Some(merged.unwrap_or_default().with(next, path)),
                Ok(None) => {}
                Err(reason) => return Err(format!("{}: {reason}", path.display())),
            }
        }
        merged.ok_or_else(|| format!("{} does not exist", list(&paths.0)))
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
        // It fails for kinds and versions that differ, and has been read without them.
        self.kubeconfig = self.kubeconfig.merge(next).unwrap_or(before);
        self
    }

    /// Names the files for people.
    pub(super) fn files(&self) -> String {
        list(&self.files)
    }

    /// Returns the file of a user.
    pub(super) fn file_of_user(&self, name: &str) -> Option<&PathBuf> {
        self.users.get(name)
    }

    /// Names a cluster and its file for people: `cluster "c" of /home/ana/.kube/config`.
    pub(super) fn cluster(&self, name: &str) -> String {
        named("cluster", name, &self.clusters)
    }

    /// Names a user and its file for people.
    pub(super) fn user(&self, name: &str) -> String {
        named("user", name, &self.users)
    }
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn named(kind: &str, name: &str, files: &HashMap<String, PathBuf>) -> String {
    match files.get(name) {
        Some(path) => format!("{kind} {name:?} of {}", path.display()),
        None => format!("{kind} {name:?}"),
    }
}
