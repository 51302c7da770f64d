//! The login keychain of macOS. The system asks the user for permission, and waits.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{State, Store};
use crate::{subprocess, trust::authority::Root};

/// Time limit for the user's answer.
const PATIENCE: Duration = Duration::from_secs(300);

pub struct Keychain {
    file: PathBuf,
}

impl Keychain {
    pub fn new(home: &Path) -> Self {
        Self { file: home.join("Library/Keychains/login.keychain-db") }
    }

    fn security(arguments: &[&str]) -> Result<String, State> {
        match subprocess::output(Command::new("/usr/bin/security").args(arguments), PATIENCE) {
            Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Ok(output) => Err(State::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
            Err(error) => Err(State::Failed(format!("security: {error}"))),
        }
    }

    fn file(&self) -> String {
        self.file.display().to_string()
    }
}

impl Store for Keychain {
    fn name(&self) -> String {
        format!("the login keychain ({})", self.file.display())
    }

    fn look(&self, root: &Root) -> State {
        let hash = root.fingerprint().to_uppercase();
        match Self::security(&["find-certificate", "-a", "-Z", &self.file()]) {
            Ok(found) if found.contains(&hash) => State::Trusts,
            Ok(_) => State::Lacks,
            Err(state) => state,
        }
    }

    fn add(&self, root: &Root) -> State {
        if self.look(root) == State::Trusts {
            return State::Trusts;
        }
        let certificate = root.file().display().to_string();
        match Self::security(&["add-trusted-cert", "-r", "trustRoot", "-k", &self.file(), &certificate]) {
            Ok(_) => self.look(root),
            Err(state) => state,
        }
    }

    fn remove(&self, root: &Root) -> State {
        match self.look(root) {
            State::Trusts => {}
            other => return other,
        }
        let hash = root.fingerprint().to_uppercase();
        match Self::security(&["delete-certificate", "-Z", &hash, "-t", &self.file()]) {
            Ok(_) => self.look(root),
            Err(state) => state,
        }
    }
}
