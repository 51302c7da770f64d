//! The databases of NSS: Chromium's and Chrome's, and one for each profile of Firefox. `certutil` of the NSS tools changes them.

use std::{env, fs, io, os::unix::fs::DirBuilderExt, path::PathBuf, process::Command};

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{Places, State, Store};
use crate::trust::{Authority, authority::fingerprint};

/// Chromium, and Chrome, below the home folder; the first is created where it is not there.
const CHROMIUM: [&str; 2] = [".pki/nssdb", "snap/chromium/current/.pki/nssdb"];

/// Folders of Firefox's profiles: of the distribution, snap and flatpak.
const FIREFOX: [&str; 4] = [
    ".mozilla/firefox",
    ".config/mozilla/firefox",
    "snap/firefox/common/.mozilla/firefox",
    ".var/app/org.mozilla.firefox/.mozilla/firefox",
];

/// The files of a database.
const FILES: [&str; 3] = ["cert9.db", "key4.db", "pkcs11.txt"];

/// Record of our write to a database: tells later whether another program changed it.
const LEFT: &str = "left.json";

/// Returns the databases that there are, and Chromium's.
pub fn all(places: &Places) -> Vec<Box<dyn Store>> {
    let database = |name: &'static str, folder: PathBuf| -> Box<dyn Store> {
        Box::new(Database { name, folder, kept: places.kept.clone() })
    };
    let mut all = Vec::new();
    for (number, folder) in CHROMIUM.iter().enumerate() {
        let folder = places.home.join(folder);
        if number == 0 || folder.join(FILES[0]).exists() {
            all.push(database("Chromium and Chrome", folder));
        }
    }
    for folder in FIREFOX {
        let profiles = fs::read_dir(places.home.join(folder)).into_iter().flatten();
        let profiles = profiles.filter_map(|entry| Some(entry.ok()?.path()));
        let mut profiles: Vec<PathBuf> = profiles.filter(|profile| profile.join(FILES[0]).exists()).collect();
        profiles.sort();
        all.extend(profiles.into_iter().map(|profile| database("Firefox", profile)));
    }
    all
}

struct Database {
    name: &'static str,
    folder: PathBuf,
    kept: PathBuf,
}

impl Database {
    fn certutil(&self, arguments: &[&str]) -> Result<Vec<u8>, State> {
        let program = find()?;
        let database = format!("sql:{}", self.folder.display());
        match Command::new(program).args(["-d", &database]).args(arguments).output() {
            Ok(output) if output.status.success() => Ok(output.stdout),
            Ok(output) => Err(State::Failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
            Err(error) => Err(State::Failed(format!("certutil: {error}"))),
        }
    }

    fn exists(&self) -> bool {
        self.folder.join(FILES[0]).exists()
    }

    /// Returns the path of this database's backup.
    fn copy(&self) -> PathBuf {
        self.kept.join(fingerprint(self.folder.as_os_str().as_encoded_bytes()))
    }

    /// Returns what tells the files from changed ones.
    fn digest(&self) -> Vec<Option<String>> {
        FILES.iter().map(|file| fs::read(self.folder.join(file)).ok().map(|bytes| fingerprint(&bytes))).collect()
    }

    /// Keeps the files as they are, before they are changed.
    fn keep(&self) -> io::Result<()> {
        let copy = self.copy();
        make_private(&copy)?;
        for file in FILES {
            if self.folder.join(file).exists() {
                fs::copy(self.folder.join(file), copy.join(file))?;
            }
        }
        Ok(())
    }

    fn seal(&self) -> io::Result<()> {
        fs::write(self.copy().join(LEFT), serde_json::to_vec(&self.digest())?)
    }

    /// Brings the files back as they were, if nobody else has changed them since. Returns whether it did.
    fn restore(&self) -> bool {
        let copy = self.copy();
        let left = fs::read(copy.join(LEFT)).ok().and_then(|left| serde_json::from_slice(&left).ok());
        if left.is_none_or(|left: Vec<Option<String>>| left != self.digest()) {
            return false;
        }
        let is_restored = FILES.iter().all(|file| {
            let (kept, there) = (copy.join(file), self.folder.join(file));
            match kept.exists() {
                true => fs::copy(kept, there).is_ok(),
                false => !there.exists() || fs::remove_file(there).is_ok(),
            }
        });
        // A folder that was made for it is empty now; another one stays.
        let _ = fs::remove_dir(&self.folder);
        if let Some(parent) =
            self.folder.parent().filter(|parent| parent.file_name().is_some_and(|name| name == ".pki"))
        {
            let _ = fs::remove_dir(parent);
        }
        is_restored
    }

    fn forget_copy(&self) {
        let _ = fs::remove_dir_all(self.copy());
        let _ = fs::remove_dir(&self.kept);
    }

    fn install(&self, authority: &Authority) -> Result<(), State> {
        let failed = |error: io::Error| State::Failed(error.to_string());
        // Without it nothing is created either.
        find()?;
        self.keep().map_err(failed)?;
        if !self.exists() {
            make_private(&self.folder).map_err(failed)?;
            self.certutil(&["-N", "--empty-password"])?;
        }
        let file = authority.file().display().to_string();
        // It may issue certificates of servers, and nothing else.
        self.certutil(&["-A", "-t", "C,,", "-n", &nickname(authority), "-i", &file])?;
        self.seal().map_err(failed)
    }
}

/// Returns certutil of NSS. macOS has another program of that name.
fn find() -> Result<PathBuf, State> {
    let path = env::var_os("PATH").unwrap_or_default();
    let known = ["/opt/homebrew/opt/nss/bin", "/usr/local/opt/nss/bin"].map(PathBuf::from);
    let mut all = env::split_paths(&path).chain(known).map(|folder| folder.join("certutil"));
    all.find(|file| file.is_file()).ok_or_else(|| {
        State::NeedsProgram("certutil is not installed: apt install libnss3-tools, or dnf install nss-tools".to_owned())
    })
}

/// Returns a name of its own for each authority: a name that two have tells nothing.
fn nickname(authority: &Authority) -> String {
    format!("adit {}", &authority.fingerprint()[..16])
}

fn make_private(folder: &std::path::Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

impl Store for Database {
    fn name(&self) -> String {
        format!("{} ({})", self.name, self.folder.display())
    }

    fn look(&self, authority: &Authority) -> State {
        if !self.exists() {
            return State::Lacks;
        }
        match self.certutil(&["-L", "-n", &nickname(authority), "-a"]) {
            Ok(pem) => {
                let is_it = |certificate: CertificateDer<'_>| fingerprint(&certificate) == authority.fingerprint();
                match CertificateDer::pem_slice_iter(&pem).flatten().any(is_it) {
                    true => State::Trusts,
                    false => State::Lacks,
                }
            }
            // It fails where it has no such certificate.
            Err(State::Failed(_)) => State::Lacks,
            Err(other) => other,
        }
    }

    fn add(&self, authority: &Authority) -> State {
        match self.look(authority) {
            State::Lacks => match self.install(authority) {
                Ok(()) => self.look(authority),
                Err(state) => state,
            },
            other => other,
        }
    }

    fn remove(&self, authority: &Authority) -> State {
        match self.look(authority) {
            State::Trusts => {}
            other => return other,
        }
        if !self.restore()
            && let Err(state) = self.certutil(&["-D", "-n", &nickname(authority)])
        {
            return state;
        }
        let state = self.look(authority);
        if state == State::Lacks {
            self.forget_copy();
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> (tempfile::TempDir, Places, Authority) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_owned();
        let authority = Authority::create(&path.join("ca"), "ana at laptop", &[]).unwrap();
        let places = Places {
            home: path.clone(),
            root: path.clone(),
            kept: path.join("kept"),
            ours: path.join("ca"),
            java: None,
        };
        (home, places, authority)
    }

    #[test]
    fn every_profile_of_firefox_is_a_store() {
        let (home, places, _) = home();
        for profile in [".mozilla/firefox/a.default", "snap/firefox/common/.mozilla/firefox/b.default"] {
            let folder = home.path().join(profile);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(FILES[0]), "").unwrap();
        }
        fs::create_dir_all(home.path().join(".mozilla/firefox/Crash Reports")).unwrap();
        let names: Vec<String> = all(&places).iter().map(|store| store.name()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(names[0].starts_with("Chromium") && names[1].contains("a.default") && names[2].contains("b.default"));
    }

    #[test]
    fn a_database_trusts_and_forgets() {
        let (home, places, authority) = home();
        let store = all(&places).remove(0);
        if find().is_err() {
            assert!(matches!(store.add(&authority), State::NeedsProgram(what) if what.contains("libnss3-tools")));
            return;
        }
        for _ in 0..2 {
            assert_eq!(store.add(&authority), State::Trusts);
        }
        assert_eq!(store.remove(&authority), State::Lacks);
        assert!(!home.path().join(".pki").exists(), "what was created for it is gone");
        assert_eq!(store.remove(&authority), State::Lacks);
        // A database that was there is as it was.
        let folder = home.path().join(CHROMIUM[0]);
        make_private(&folder).unwrap();
        let database = Database { name: "Chromium", folder: folder.clone(), kept: places.kept.clone() };
        database.certutil(&["-N", "--empty-password"]).unwrap();
        let before = database.digest();
        assert_eq!(store.add(&authority), State::Trusts);
        assert_ne!(database.digest(), before);
        assert_eq!(store.remove(&authority), State::Lacks);
        assert_eq!(database.digest(), before);
        assert!(!places.kept.exists());
    }
}
