//! Checks whether programs of this system resolve the names that adit serves, and changes that.
//!
//! Browsers and curl resolve names below `localhost` by themselves. For other programs there are three ways, by the system:
//!
//! | system | names below localhost | names below others, for a wildcard | single names |
//! |---|---|---|---|
//! | Linux with systemd-resolved | it answers for them (systemd-resolved.service(8)) | a drop-in of its configuration | `/etc/hosts` |
//! | other Linux with glibc | `myhostname` in `/etc/nsswitch.conf` | - | `/etc/hosts` |
//! | macOS | `/etc/resolver/localhost` | a file each in `/etc/resolver` | `/etc/hosts` |
//!
//! A drop-in and the files of macOS lead questions to the listener of adit, which answers them itself (`listener/dns.rs`).

mod files;
mod hosts;
mod nsswitch;
mod resolved;
mod resolver;

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

pub use self::resolved::RESTART;

/// State of the system's resolver for some names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// They are resolved, by this.
    Asks(String),
    /// They are not.
    Lacks,
    /// A file cannot be changed without root.
    NeedsRoot,
    /// The library is missing: the command that installs it.
    NeedsPackage(String),
    Failed(String),
}

/// Names, and what is the case with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `localhost`, which means all names below it too; `*.dev.test`: all names below it; else one name.
    pub name: String,
    pub state: State,
    /// The file that decides it.
    pub file: PathBuf,
}

/// Resolvers that a system has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Linux,
    MacOs,
}

impl Kind {
    pub fn here() -> Self {
        if cfg!(target_os = "macos") { Self::MacOs } else { Self::Linux }
    }
}

/// Change to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Look,
    Install,
    Uninstall,
}

/// Names that are served beside those below localhost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub single: Vec<String>,
    /// Names of which all below are served: `dev.test` for `*.dev.test`. A resolver takes them for the name itself too.
    pub below: Vec<String>,
}

/// The system below a root folder: `/`, but in tests.
pub struct System {
    root: PathBuf,
    kind: Kind,
    /// Where adit answers DNS queries. None: it has no listener on the loopback.
    server: Option<SocketAddr>,
    /// Addresses of the listeners of HTTP, as this machine reaches them.
    addresses: Vec<IpAddr>,
    names: Names,
}

impl System {
    /// `server`: where adit answers DNS queries. `addresses`: those that single names lead to.
    pub fn new(root: &Path, kind: Kind, server: Option<SocketAddr>, addresses: Vec<IpAddr>, names: Names) -> Self {
        Self { root: root.to_owned(), kind, server, addresses, names }
    }

    /// Looks, or changes what is to be changed, and returns how it is then.
    pub fn does(&self, act: Act) -> Vec<Part> {
        let mut parts = match self.kind {
            Kind::MacOs => resolver::parts(self, act),
            Kind::Linux => {
                let mut parts = vec![match resolved::answers(&self.root) {
                    Some(part) => part,
                    None => nsswitch::part(&self.root, act),
                }];
                parts.extend(resolved::parts(self, act));
                parts
            }
        };
        parts.extend(hosts::parts(self, act));
        parts
    }

    /// Returns the drop-in of systemd-resolved, which reads it at its start.
    pub fn drop_in(&self) -> Option<String> {
        fs::read_to_string(self.root.join(resolved::DROP_IN)).ok()
    }

    /// Removes the drop-in: systemd-resolved has not read it.
    ///
    /// # Errors
    /// The system does not allow it.
    pub fn remove_drop_in(&self) -> io::Result<()> {
        files::remove(&self.root.join(resolved::DROP_IN))
    }

    /// Returns the command that has names below localhost resolved, if any does.
    pub fn command(&self) -> Option<String> {
        match self.kind {
            Kind::MacOs => Some("sudo adit dns install".to_owned()),
            Kind::Linux => nsswitch::command(&self.root),
        }
    }
}

/// Returns the state where adit answers no DNS queries.
fn no_server() -> State {
    let hint = "adit has no listener on the loopback, where it answers DNS queries: add 127.0.0.1 to http.listen";
    State::Failed(hint.to_owned())
}

/// Returns the state after an error with a file.
fn failed(file: &Path, error: &io::Error) -> State {
    match error.kind() {
        io::ErrorKind::PermissionDenied => State::NeedsRoot,
        io::ErrorKind::NotFound => State::Failed(format!("this system has no {}", file.display())),
        _ => State::Failed(format!("{}: {error}", file.display())),
    }
}
