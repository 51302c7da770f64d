//! The stores that trust the authority: of browsers, and of the system.
//!
//! The authority is known by its SHA-256, never by its name. One store that fails does not stop the others.

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
    /// It trusts the authority.
    Trusts,
    /// It does not.
    Lacks,
    /// It cannot be changed without root: the command that does it.
    NeedsRoot(String),
    /// A program is missing: what to install.
    NeedsProgram(String),
    Failed(String),
}

/// A store of certificates.
pub trait Store {
    /// Its name for people: `Chromium (~/.pki/nssdb)`.
    fn name(&self) -> String;

    /// Looks whether it trusts the authority.
    fn look(&self, root: &Root) -> State;

    /// Has it trust the authority. Nothing happens where it does.
    fn add(&self, root: &Root) -> State;

    /// Has it forget the authority. Lacks: it certainly does not have it, trusted or not.
    fn remove(&self, root: &Root) -> State;
}

/// Places of the stores.
#[derive(Clone, Debug)]
pub struct Places {
    pub home: PathBuf,
    /// The root folder of the system's store.
    pub root: PathBuf,
    /// Folder of the backups that uninstalling restores.
    pub kept: PathBuf,
    /// The folder of the authority.
    pub ours: PathBuf,
    /// The home folder of Java. None: there is no Java.
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
