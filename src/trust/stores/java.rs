//! Java reads its own file. adit makes a copy of it with the CA, in the CA's folder, for programs that adit starts.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{Places, State, Store};
use crate::{
    subprocess,
    trust::{
        Authority,
        authority::{Root, fingerprint},
    },
};

/// Variable with options that every JVM reads before those of its command line.
pub const VARIABLE: &str = "JAVA_TOOL_OPTIONS";

/// Property with the path of the file.
const PROPERTY: &str = "-Djavax.net.ssl.trustStore";

/// Password of the file that comes with Java.
const PASSWORD: &str = "changeit";

/// Name of the folder below that of the CA.
const FOLDER: &str = "java";
const COPY: &str = "cacerts";
const MADE: &str = "made.json";

/// The file that comes with Java, below its home folder: since version 9, and before.
const CACERTS: [&str; 2] = ["lib/security/cacerts", "jre/lib/security/cacerts"];

/// Time limit of keytool: it is a JVM, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Java {
    home: PathBuf,
    cacerts: PathBuf,
    /// Folder of the copy.
    folder: PathBuf,
}

/// Digests of the sources of a copy, and of the copy.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Made {
    authority: String,
    cacerts: String,
    copy: String,
}

/// Returns the home folder of the Java that a shell starts: `JAVA_HOME`, else that of `java`. `None`: there is none.
pub fn home() -> Option<PathBuf> {
    let named = env::var_os("JAVA_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let of_program = || {
        let path = env::var_os("PATH")?;
        let java = env::split_paths(&path).map(|folder| folder.join("java")).find(|file| file.is_file())?;
        Some(java.canonicalize().ok()?.parent()?.parent()?.to_owned())
    };
    named.or_else(of_program)
}

/// Returns `options` plus those that make a JVM trust the CA. `None`: there is no copy, or `options` set a file themselves.
pub fn options(authority: &Authority, ours: &Path, options: &str) -> Option<String> {
    let folder = ours.join(FOLDER);
    let made = read(&folder)?;
    let is_taken = options.contains(PROPERTY);
    if is_taken || made.authority != authority.fingerprint() || digest(&folder.join(COPY))? != made.copy {
        return None;
    }
    let file = folder.join(COPY).into_os_string().into_string().ok()?;
    // The JVM splits at spaces and removes quotes; a quote itself cannot be escaped.
    let file = if file.contains(char::is_whitespace) { format!("\"{file}\"") } else { file };
    Some(format!("{options} {PROPERTY}={file} {PROPERTY}Password={PASSWORD}").trim_start().to_owned())
}

fn read(folder: &Path) -> Option<Made> {
    serde_json::from_slice(&fs::read(folder.join(MADE)).ok()?).ok()
}

fn digest(file: &Path) -> Option<String> {
    fs::read(file).ok().map(|bytes| fingerprint(&bytes))
}

impl Java {
    /// Returns the store. `None`: there is no Java.
    pub fn new(places: &Places) -> Option<Self> {
        let home = places.java.clone()?;
        let cacerts = CACERTS.iter().map(|file| home.join(file)).find(|file| file.is_file())?;
        Some(Self { home, cacerts, folder: places.ours.join(FOLDER) })
    }

    fn make(&self, root: &Root) -> Result<(), State> {
        let failed = |error: std::io::Error| State::Failed(error.to_string());
        let keytool = Some(self.home.join("bin/keytool")).filter(|file| file.is_file()).unwrap_or("keytool".into());
        fs::create_dir_all(&self.folder).map_err(failed)?;
        let copy = self.folder.join(COPY);
        let temporary = copy.with_extension("new");
        let bytes = fs::read(&self.cacerts).map_err(failed)?;
        fs::write(&temporary, &bytes).map_err(failed)?;
        let mut command = Command::new(keytool);
        command.args(["-importcert", "-noprompt", "-storepass", PASSWORD, "-alias"]);
        command.arg(format!("adit {}", root.short())).arg("-file").arg(root.file());
        command.arg("-keystore").arg(&temporary).env_remove(VARIABLE);
        match subprocess::output(&mut command, PATIENCE) {
            Ok(output) if output.status.success() => {}
            // keytool prints its errors to stdout.
            Ok(output) => {
                let said = [output.stdout, output.stderr].concat();
                return Err(State::Failed(String::from_utf8_lossy(&said).trim().to_owned()));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(State::NeedsProgram("keytool is not installed: it comes with Java".to_owned()));
            }
            Err(error) => return Err(State::Failed(format!("keytool: {error}"))),
        }
        let made = Made {
            authority: root.fingerprint(),
            cacerts: fingerprint(&bytes),
            copy: digest(&temporary).unwrap_or_default(),
        };
        fs::rename(&temporary, &copy).map_err(failed)?;
        fs::write(self.folder.join(MADE), serde_json::to_vec(&made).unwrap_or_default()).map_err(failed)
    }
}

impl Store for Java {
    fn name(&self) -> String {
        format!("Java below adit run ({})", self.folder.join(COPY).display())
    }

    fn look(&self, root: &Root) -> State {
        let found = Some((digest(&self.cacerts), digest(&self.folder.join(COPY))));
        let found = found
            .and_then(|(cacerts, copy)| Some(Made { authority: root.fingerprint(), cacerts: cacerts?, copy: copy? }));
        if found.is_some() && found == read(&self.folder) { State::Trusts } else { State::Lacks }
    }

    fn add(&self, root: &Root) -> State {
        if self.look(root) == State::Trusts {
            return State::Trusts;
        }
        match self.make(root) {
            Ok(()) => self.look(root),
            Err(state) => {
                let _ = fs::remove_dir_all(&self.folder);
                state
            }
        }
    }

    fn remove(&self, root: &Root) -> State {
        // The copy belongs to another CA.
        if read(&self.folder).is_some_and(|made| made.authority != root.fingerprint()) {
            return State::Lacks;
        }
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => State::Failed(error.to_string()),
            _ => State::Lacks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_for_one_authority_and_one_version_of_java() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_owned();
        let java = path.join("a jdk");
        let ours = path.join("our ca");
        let authority = Authority::create(&ours, "ana at laptop", &[]).unwrap();
        let places =
            |java| Places { home: path.clone(), root: path.clone(), kept: path.join("kept"), ours: ours.clone(), java };
        assert!(Java::new(&places(None)).is_none() && Java::new(&places(Some(java.clone()))).is_none());
        fs::create_dir_all(java.join("lib/security")).unwrap();
        fs::create_dir_all(java.join("bin")).unwrap();
        fs::write(java.join(CACERTS[0]), "cas").unwrap();
        let keytool = java.join("bin/keytool");
        let store = Java::new(&places(Some(java.clone()))).unwrap();
        let script = |text: &str| {
            use std::os::unix::fs::PermissionsExt;
            fs::write(&keytool, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&keytool, fs::Permissions::from_mode(0o755)).unwrap();
        };
        script("echo keytool error: password was incorrect; exit 1");
        assert!(matches!(store.add(authority.root()), State::Failed(why) if why.contains("password was incorrect")));
        assert_eq!(options(&authority, &ours, ""), None);
        // This fake adds to the file in its last argument.
        script("for file in \"$@\"; do :; done; echo with ours >> \"$file\"");
        assert_eq!((store.add(authority.root()), store.add(authority.root())), (State::Trusts, State::Trusts));
        assert_eq!(fs::read_to_string(ours.join("java/cacerts")).unwrap(), "caswith ours\n");
        let set = options(&authority, &ours, "-Xmx1g").unwrap();
        let file = ours.join("java/cacerts");
        let wanted = format!("-Xmx1g {PROPERTY}=\"{}\" {PROPERTY}Password=changeit", file.display());
        assert_eq!(set, wanted);
        assert_eq!(options(&authority, &ours, "-Djavax.net.ssl.trustStore=/x"), None);
        fs::write(java.join(CACERTS[0]), "newer").unwrap();
        assert_eq!(store.look(authority.root()), State::Lacks, "Java has other CAs now");
        assert_eq!(store.add(authority.root()), State::Trusts);
        assert_eq!((store.remove(authority.root()), store.remove(authority.root())), (State::Lacks, State::Lacks));
        assert!(!ours.join("java").exists());
    }
}
