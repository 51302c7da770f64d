//! The databases of NSS: that of Chromium and Chrome, and one per profile of Firefox. `certutil` of the NSS tools changes them.

use std::{
    env, fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{Places, State, Store};
use crate::{
    subprocess,
    trust::authority::{Root, fingerprint},
};

/// Databases of Chromium and Chrome, below the home folder. The first one is created if it does not exist.
const CHROMIUM: [&str; 2] = [".pki/nssdb", "snap/chromium/current/.pki/nssdb"];

/// Folders of Firefox's profiles: of the distribution, snap and flatpak.
const FIREFOX: [&str; 4] = [
    ".mozilla/firefox",
    ".config/mozilla/firefox",
    "snap/firefox/common/.mozilla/firefox",
    ".var/app/org.mozilla.firefox/.mozilla/firefox",
];

/// Files of a database.
const FILES: [&str; 3] = ["cert9.db", "key4.db", "pkcs11.txt"];

/// Time limit of certutil. It asks for the password of a database at the terminal, and the user may have to look it up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Record of adit's last write to a database. It shows later whether another program has changed the database since.
const LEFT: &str = "left.json";

/// Returns the existing databases, and in any case Chromium's.
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

/// The state of the certificate in a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Trusted,
    /// The certificate is there, but is not trusted to issue server certificates.
    Untrusted,
    Nothing,
}

impl Database {
    fn certutil(&self, arguments: &[&str]) -> Result<Vec<u8>, State> {
        let program = find()?;
        let database = format!("sql:{}", self.folder.display());
        match subprocess::output(Command::new(program).args(["-d", &database]).args(arguments), PATIENCE) {
            Ok(output) if output.status.success() => Ok(output.stdout),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                let needs_password = said.contains("could not authenticate") || said.contains("BAD_PASSWORD");
                let hint = if needs_password { " (it has a password: certutil asks for it in a terminal)" } else { "" };
                Err(State::Failed(said + hint))
            }
            Err(error) => Err(State::Failed(format!("certutil: {error}"))),
        }
    }

    fn exists(&self) -> bool {
        self.folder.join(FILES[0]).exists()
    }

    /// Finds the certificate and its trust flags, which certutil lists as `NICKNAME   C,,`.
    fn find(&self, root: &Root) -> Result<Found, State> {
        if !self.exists() {
            return Ok(Found::Nothing);
        }
        let name = nickname(root);
        let listed = self.certutil(&["-L"])?;
        let listed = String::from_utf8_lossy(&listed);
        let Some(flags) = listed.lines().find_map(|line| line.strip_prefix(&name)).map(str::trim) else {
            return Ok(Found::Nothing);
        };
        let pem = self.certutil(&["-L", "-n", &name, "-a"])?;
        let is_it = |certificate: CertificateDer<'_>| certificate == *root.certificate();
        Ok(match CertificateDer::pem_slice_iter(&pem).flatten().any(is_it) {
            true if flags.split(',').next().is_some_and(|of_servers| of_servers.contains('C')) => Found::Trusted,
            true => Found::Untrusted,
            false => Found::Nothing,
        })
    }

    /// Returns whether the certificate may be there, without certutil: adit has changed the database, or the file contains the
    /// nickname.
    fn may_have(&self, root: &Root) -> bool {
        let name = nickname(root);
        let has_name = |bytes: Vec<u8>| bytes.windows(name.len()).any(|part| part == name.as_bytes());
        self.exists() && (self.copy().exists() || fs::read(self.folder.join(FILES[0])).map_or(true, has_name))
    }

    /// Returns the path of this database's backup.
    fn copy(&self) -> PathBuf {
        self.kept.join(fingerprint(self.folder.as_os_str().as_encoded_bytes()))
    }

    /// Returns digests of the files.
    fn digest(&self) -> Vec<Option<String>> {
        FILES.iter().map(|file| fs::read(self.folder.join(file)).ok().map(|bytes| fingerprint(&bytes))).collect()
    }

    /// Returns whether the files are as adit has left them, so that restoring the backup loses nothing.
    fn is_as_left(&self) -> bool {
        let left = fs::read(self.copy().join(LEFT)).ok().and_then(|left| serde_json::from_slice(&left).ok());
        left.is_some_and(|left: Vec<Option<String>>| left == self.digest())
    }

    /// Makes a backup of the files before a change.
    fn keep(&self) -> io::Result<()> {
        let copy = self.copy();
        self.forget_copy();
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

    /// Restores the files, if no other program has changed them since. Returns whether it did.
    fn restore(&self) -> bool {
        let copy = self.copy();
        if !self.is_as_left() {
            return false;
        }
        let is_restored = FILES.iter().all(|file| {
            let (kept, there) = (copy.join(file), self.folder.join(file));
            match kept.exists() {
                true => fs::copy(kept, there).is_ok(),
                false => !there.exists() || fs::remove_file(there).is_ok(),
            }
        });
        // Delete the folder if it is empty, which it is if adit has created it.
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

    fn install(&self, root: &Root, found: Found) -> Result<(), State> {
        let failed = |error: io::Error| State::Failed(error.to_string());
        // Do not create anything if certutil is missing.
        find()?;
        let has_backup = self.is_as_left();
        match found {
            _ if has_backup => {}
            Found::Nothing => self.keep().map_err(failed)?,
            // Files with the certificate are not the original ones, so they are not a backup.
            Found::Trusted | Found::Untrusted => self.forget_copy(),
        }
        let changed = self.change(root, found);
        if self.copy().exists() {
            self.seal().map_err(failed)?;
        }
        // Do not leave a certificate that was added but could not be trusted.
        if changed.is_err() && found == Found::Nothing && !has_backup && self.restore() {
            self.forget_copy();
        }
        changed
    }

    fn change(&self, root: &Root, found: Found) -> Result<(), State> {
        let name = nickname(root);
        if found != Found::Nothing {
            return self.certutil(&["-M", "-t", "C,,", "-n", &name]).map(drop);
        }
        // Only if there is no database: `certutil -N` would create an existing key database anew.
        if !FILES[..2].iter().any(|file| self.folder.join(file).exists()) {
            make_private(&self.folder).map_err(|error| State::Failed(error.to_string()))?;
            self.certutil(&["-N", "--empty-password"])?;
        }
        let file = root.file().display().to_string();
        // Trust it for issuing server certificates only.
        self.certutil(&["-A", "-t", "C,,", "-n", &name, "-i", &file]).map(drop)
    }
}

/// Returns certutil of the NSS tools, from PATH or from Homebrew's folders of nss.
fn find() -> Result<PathBuf, State> {
    let path = env::var_os("PATH").unwrap_or_default();
    let known = ["/opt/homebrew/opt/nss/bin", "/usr/local/opt/nss/bin"].map(PathBuf::from);
    let mut all = env::split_paths(&path).chain(known).map(|folder| folder.join("certutil"));
    all.find(|file| file.is_file()).ok_or_else(|| {
        State::NeedsProgram("certutil is not installed: apt install libnss3-tools, or dnf install nss-tools".to_owned())
    })
}

/// Returns a nickname that is unique per CA: certutil cannot distinguish certificates with the same nickname.
fn nickname(root: &Root) -> String {
    format!("adit {}", root.short())
}

fn make_private(folder: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

impl Store for Database {
    fn name(&self) -> String {
        format!("{} ({})", self.name, self.folder.display())
    }

    fn look(&self, root: &Root) -> State {
        match self.find(root) {
            Ok(Found::Trusted) => State::Trusts,
            Ok(Found::Untrusted | Found::Nothing) => State::Lacks,
            Err(state) => state,
        }
    }

    fn add(&self, root: &Root) -> State {
        match self.find(root) {
            Ok(Found::Trusted) => State::Trusts,
            Ok(found) => self.install(root, found).map_or_else(|state| state, |()| self.look(root)),
            Err(state) => state,
        }
    }

    fn remove(&self, root: &Root) -> State {
        match self.find(root) {
            Ok(Found::Nothing) => return State::Lacks,
            Ok(Found::Trusted | Found::Untrusted) => {}
            Err(state) => return if self.may_have(root) { state } else { State::Lacks },
        }
        self.restore();
        let deleted = match self.find(root) {
            Ok(Found::Nothing) => Ok(Vec::new()),
            Ok(Found::Trusted | Found::Untrusted) => self.certutil(&["-D", "-n", &nickname(root)]),
            Err(state) => Err(state),
        };
        match deleted.and_then(|_| self.find(root)) {
            Ok(Found::Nothing) => {
                self.forget_copy();
                State::Lacks
            }
            Ok(_) => State::Failed("certutil says that it deleted the certificate, and still lists it".to_owned()),
            Err(state) => state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Authority;

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
            assert!(matches!(store.add(authority.root()), State::NeedsProgram(what) if what.contains("libnss3-tools")));
            return;
        }
        for _ in 0..2 {
            assert_eq!(store.add(authority.root()), State::Trusts);
        }
        assert_eq!(store.remove(authority.root()), State::Lacks);
        assert!(!home.path().join(".pki").exists(), "what was created for it is gone");
        assert_eq!(store.remove(authority.root()), State::Lacks);
        // An existing database is restored exactly.
        let folder = home.path().join(CHROMIUM[0]);
        make_private(&folder).unwrap();
        let database = Database { name: "Chromium", folder: folder.clone(), kept: places.kept.clone() };
        database.certutil(&["-N", "--empty-password"]).unwrap();
        let before = database.digest();
        assert_eq!(store.add(authority.root()), State::Trusts);
        assert_ne!(database.digest(), before);
        assert_eq!(store.remove(authority.root()), State::Lacks);
        assert_eq!(database.digest(), before);
        assert!(!places.kept.exists());
    }
    /// Creates Chromium's database below the home folder. `password`: a file with the database's password. `None`: certutil is
    /// missing.
    fn database(places: &Places, password: Option<&Path>) -> Option<Database> {
        let program = find().ok()?;
        let folder = places.home.join(CHROMIUM[0]);
        make_private(&folder).unwrap();
        let database = Database { name: "Chromium", folder, kept: places.kept.clone() };
        let mut command = Command::new(program);
        command.args(["-N", "-d", &format!("sql:{}", database.folder.display())]);
        match password {
            Some(file) => command.arg("-f").arg(file),
            None => command.arg("--empty-password"),
        };
        assert!(subprocess::output(&mut command, PATIENCE).unwrap().status.success());
        Some(database)
    }

    #[test]
    fn a_certificate_that_is_not_trusted_is_not_called_so() {
        let (_home, places, authority) = home();
        let Some(database) = database(&places, None) else { return };
        let root = authority.root();
        assert_eq!(database.add(root), State::Trusts);
        for flags in [",,", "p,p,p", ",C,C"] {
            database.certutil(&["-M", "-n", &nickname(root), "-t", flags]).unwrap();
            assert_eq!(database.look(root), State::Lacks, "{flags}");
            assert_eq!(database.add(root), State::Trusts, "{flags}");
        }
        database.certutil(&["-M", "-n", &nickname(root), "-t", ",,"]).unwrap();
        assert_eq!(database.remove(root), State::Lacks);
        assert_eq!(database.find(root), Ok(Found::Nothing));
        assert!(!places.kept.exists());
    }

    #[test]
    fn a_database_with_a_password_is_left_as_it_was() {
        let (home, places, authority) = home();
        let password = home.path().join("password");
        fs::write(&password, "secret").unwrap();
        // With a terminal, certutil would ask for the password there.
        if fs::File::open("/dev/tty").is_ok() {
            return;
        }
        let Some(database) = database(&places, Some(&password)) else { return };
        for has_certificates in [true, false] {
            if !has_certificates {
                fs::remove_file(database.folder.join(FILES[0])).unwrap();
            }
            let before = database.digest();
            for _ in 0..2 {
                let added = database.add(authority.root());
                assert!(matches!(&added, State::Failed(why) if why.contains("password")), "{added:?}");
                assert_eq!((database.digest(), database.look(authority.root())), (before.clone(), State::Lacks));
            }
            assert_eq!(database.remove(authority.root()), State::Lacks);
            assert!(!places.kept.exists());
        }
    }

    #[test]
    fn a_database_that_cannot_be_read_is_clean_only_if_adit_never_changed_it() {
        let (_home, places, authority) = home();
        let Some(database) = database(&places, None) else { return };
        let file = database.folder.join(FILES[0]);
        let whole = fs::read(&file).unwrap();
        fs::write(&file, "junk").unwrap();
        assert!(matches!(database.look(authority.root()), State::Failed(_)));
        assert_eq!(database.remove(authority.root()), State::Lacks);
        fs::write(&file, whole).unwrap();
        assert_eq!(database.add(authority.root()), State::Trusts);
        assert!(database.may_have(authority.root()));
        let trusting = fs::read(&file).unwrap();
        fs::write(&file, "junk").unwrap();
        assert!(matches!(database.remove(authority.root()), State::Failed(_)));
        fs::write(&file, trusting).unwrap();
        database.forget_copy();
        assert!(database.may_have(authority.root()), "its name is in the file");
        assert_eq!(database.remove(authority.root()), State::Lacks);
    }
}
