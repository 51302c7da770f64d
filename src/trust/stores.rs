//! The stores that trust the CA: those of browsers, and that of the system.
//!
//! A CA is identified by its SHA-256, never by its name. If one store fails, the others are still changed.

pub mod java;
#[cfg(target_os = "macos")]
mod keychain;
mod nss;
#[cfg(not(target_os = "macos"))]
mod system;

use std::path::PathBuf;

use super::authority::Root;

/// State of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It trusts the CA.
    Trusts,
    /// It does not trust the CA.
    Lacks,
    /// It cannot be changed without root. The value is the command to run.
    NeedsRoot(String),
    /// A program is missing. The value says what to install.
    NeedsProgram(String),
    Failed(String),
}

/// A store of certificates.
pub trait Store {
    /// Returns its name for people: `Chromium (~/.pki/nssdb)`.
    fn name(&self) -> String;

    /// Returns whether it trusts the CA.
    fn look(&self, root: &Root) -> State;

    /// Makes it trust the CA, unless it does already.
    fn add(&self, root: &Root) -> State;

    /// Removes the CA. `Lacks`: the store does not have it, trusted or not.
    fn remove(&self, root: &Root) -> State;
}

/// Places of the stores.
#[derive(Clone, Debug)]
pub struct Places {
    pub home: PathBuf,
    /// Root folder of the system's store.
    pub root: PathBuf,
    /// Folder of backups, which uninstalling restores.
    pub kept: PathBuf,
    /// Folder of the CA.
    pub ours: PathBuf,
    /// Home folder of Java. `None`: there is no Java.
    pub java: Option<PathBuf>,
}

/// Returns the stores of this machine and user.
pub fn all(places: &Places) -> Vec<Box<dyn Store>> {
    #[cfg(target_os = "macos")]
    let of_system: Vec<Box<dyn Store>> = vec![Box::new(keychain::Keychain::new(&places.home))];
    #[cfg(not(target_os = "macos"))]
    let of_system: Vec<Box<dyn Store>> = vec![Box::new(system::System::new(places))];
    let of_java = java::Java::new(places).map(|java| -> Box<dyn Store> { Box::new(java) });
    of_system.into_iter().chain(nss::all(places)).chain(of_java).collect()
}
