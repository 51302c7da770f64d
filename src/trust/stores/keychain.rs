//! The login keychain of macOS. The system asks the user, and waits for the answer.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::{State, Store};
use crate::trust::Authority;

pub struct Keychain {
    file: PathBuf,
}

impl Keychain {
    pub fn new(home: &Path) -> Self {
        Self { file: home.join("Library/Keychains/login.keychain-db") }
    }

    fn security(arguments: &[&str]) -> Result<String, State> {
        match Command::new("/usr/bin/security").args(arguments).output() {
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

    fn look(&self, authority: &Authority) -> State {
        let hash = authority.fingerprint().to_uppercase();
        match Self::security(&["find-certificate", "-a", "-Z", "-c", authority.name(), &self.file()]) {
            Ok(found) if found.contains(&hash) => State::Trusts,
            _ => State::Lacks,
        }
    }

    fn add(&self, authority: &Authority) -> State {
        if self.look(authority) == State::Trusts {
            return State::Trusts;
        }
        let certificate = authority.file().display().to_string();
        match Self::security(&["add-trusted-cert", "-r", "trustRoot", "-k", &self.file(), &certificate]) {
            Ok(_) => self.look(authority),
            Err(state) => state,
        }
    }

    fn remove(&self, authority: &Authority) -> State {
        if self.look(authority) != State::Trusts {
            return State::Lacks;
        }
        let hash = authority.fingerprint().to_uppercase();
        match Self::security(&["delete-certificate", "-Z", &hash, "-t", &self.file()]) {
            Ok(_) => self.look(authority),
            Err(state) => state,
        }
    }
}
