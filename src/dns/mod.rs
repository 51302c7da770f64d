//! Checks whether programs on this system resolve the names that adit serves, and changes the system so that they do.
//!
//! Browsers and curl resolve names below `localhost` themselves. Other programs use the system's resolver:
//!
//! | system | names below localhost | names below others, for a wildcard | single names |
//! |---|---|---|---|
//! | Linux with systemd-resolved | it answers them (systemd-resolved.service(8)) | a drop-in for it | `/etc/hosts` |
//! | other Linux with glibc | `myhostname` in `/etc/nsswitch.conf` | - | `/etc/hosts` |
//! | macOS | `/etc/resolver/localhost` | one file each in `/etc/resolver` | `/etc/hosts` |
//!
//! A drop-in and the files of macOS send queries to adit's listener, which answers them itself (`listener/dns.rs`).

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
    /// The system resolves them, with this service.
    Asks(String),
    /// The system does not resolve them.
    Lacks,
    /// A file cannot be changed without root.
    NeedsRoot,
    /// The library is missing. The value is the command that installs it.
    NeedsPackage(String),
    Failed(String),
}

/// Names with their state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// `localhost`, which includes all names below it; `*.dev.test`: all names below it; else a single name.
    pub name: String,
    pub state: State,
    /// File that decides the state.
    pub file: PathBuf,
}

/// Operating systems, by resolver.
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

/// What to do: only look, install, or uninstall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Look,
    Install,
    Uninstall,
}

/// Names that adit serves in addition to those below localhost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub single: Vec<String>,
    /// Names with everything below them: `dev.test` for `*.dev.test`. Resolvers include the name itself.
    pub below: Vec<String>,
}

/// The system below a root folder, which is `/` except in tests.
pub struct System {
    root: PathBuf,
    kind: Kind,
    /// Address at which adit answers DNS queries. `None`: adit has no loopback listener.
    server: Option<SocketAddr>,
    /// Addresses of the HTTP listeners, as local programs reach them.
    addresses: Vec<IpAddr>,
    names: Names,
}

impl System {
    /// `server`: address at which adit answers DNS queries. `addresses`: addresses for single names.
    pub fn new(root: &Path, kind: Kind, server: Option<SocketAddr>, addresses: Vec<IpAddr>, names: Names) -> Self {
        Self { root: root.to_owned(), kind, server, addresses, names }
    }

    /// Looks, installs or uninstalls, and returns the resulting states.
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

    /// Returns the content of the drop-in of systemd-resolved, which reads it at its start.
    pub fn drop_in(&self) -> Option<String> {
        fs::read_to_string(self.root.join(resolved::DROP_IN)).ok()
    }

    /// Deletes the drop-in, because systemd-resolved has not read it.
    ///
    /// # Errors
    /// The system denies it.
    pub fn remove_drop_in(&self) -> io::Result<()> {
        files::remove(&self.root.join(resolved::DROP_IN))
    }

    /// Returns the command that makes names below localhost resolve. `None`: no command can.
    pub fn command(&self) -> Option<String> {
        match self.kind {
            Kind::MacOs => Some("sudo adit dns install".to_owned()),
            Kind::Linux => nsswitch::command(&self.root),
        }
    }
}

/// Returns the state if adit answers no DNS queries.
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
