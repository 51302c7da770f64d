//! The `auth-provider` of a user in its kubeconfig: read, and written under kubectl's lock.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::load;
use crate::{
    atomic_file,
    config::file::edit::{self, Step},
    k8s::credentials::oidc::{Settings, Store},
    tls::reason,
};

/// Location of the settings.
pub(super) struct Stored {
    pub file: PathBuf,
    pub user: String,
    /// Settings when the kubeconfig was loaded: a pipe can be read only once.
    pub loaded: Settings,
}

impl Store for Stored {
    fn read(&self) -> Result<Settings, String> {
        if !self.is_regular() {
            return Ok(self.loaded.clone());
        }
        let file =
            load::Files::default().read(&self.file).map_err(|reason| format!("{}: {reason}", self.file.display()))?;
        let users = file.into_iter().flat_map(|file| file.auth_infos);
        let user = users.filter(|named| named.name == self.user).find_map(|named| named.auth_info);
        let provider = user.and_then(|user| user.auth_provider);
        provider.map(|provider| provider.config).ok_or_else(|| {
            format!("{} no longer has the user {:?} with an auth-provider", self.file.display(), self.user)
        })
    }

    fn check(&self, keys: &[&str]) -> Result<(), String> {
        let values: Vec<_> = keys.iter().map(|key| (*key, "a")).collect();
        self.edited(&values)?;
        OpenOptions::new().write(true).open(&self.file).map_err(|error| self.unwritable(&error))?;
        // The lock file is in the same folder as the new file, so this also tests whether the folder is writable.
        Lock::take(&self.file).map(drop)
    }

    fn write(&self, values: &[(&str, &str)]) -> Result<(), String> {
        let _lock = Lock::take(&self.file)?;
        let text = self.edited(values)?;
        atomic_file::rewrite(&self.file, text.as_bytes()).map_err(|error| self.unwritable(&error))
    }
}

impl Stored {
    /// Returns whether the kubeconfig is a file, or missing.
    fn is_regular(&self) -> bool {
        self.file.metadata().map_or(true, |metadata| metadata.is_file())
    }

    fn edited(&self, values: &[(&str, &str)]) -> Result<String, String> {
        if !self.is_regular() {
            return Err(self.unwritable(&io::Error::other("it is a pipe or a device; use a file")));
        }
        let text = fs::read_to_string(&self.file).map_err(|error| self.unwritable(&error))?;
        let path = [
            Step::Key("users"),
            Step::Named(&self.user),
            Step::Key("user"),
            Step::Key("auth-provider"),
            Step::Key("config"),
        ];
        edit::set(&text, &path, values).ok_or_else(|| {
            format!("{} is written in a way that adit does not edit: a key twice, or an alias", self.file.display())
        })
    }

    fn unwritable(&self, error: &io::Error) -> String {
        format!("{} cannot be written: {}", self.file.display(), reason(error))
    }
}

/// Lock file of client-go, next to the kubeconfig.
struct Lock(PathBuf);

impl Lock {
    fn take(file: &Path) -> Result<Self, String> {
        let mut name = file.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        match OpenOptions::new().write(true).create_new(true).mode(0o000).open(&path) {
            Ok(_) => Ok(Self(path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(format!("another program has locked it: delete {} if none is running", path.display()))
            }
            Err(error) => Err(format!("{} cannot be written: {}", path.display(), reason(&error))),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const TEXT: &str =
        "users:\n- name: u # me\n  user: {auth-provider: {name: oidc, config: {client-id: c, id-token: old}}}\n";

    fn stored(text: &str) -> (tempfile::TempDir, Stored) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        fs::write(&file, text).unwrap();
        (folder, Stored { file, user: "u".into(), loaded: Settings::new() })
    }

    #[test]
    fn values_are_written_through_a_symlink_and_the_mode_stays() {
        let (folder, stored) = stored(TEXT);
        fs::set_permissions(&stored.file, fs::Permissions::from_mode(0o640)).unwrap();
        let link = folder.path().join("link");
        symlink(&stored.file, &link).unwrap();
        let linked = Stored { file: link.clone(), user: "u".into(), loaded: Settings::new() };
        linked.check(&["id-token", "refresh-token"]).unwrap();
        assert_eq!(fs::read_to_string(&stored.file).unwrap(), TEXT, "a check changes nothing");
        linked.write(&[("id-token", "new"), ("refresh-token", "r")]).unwrap();
        let settings = stored.read().unwrap();
        assert_eq!((settings["id-token"].as_str(), settings["refresh-token"].as_str()), ("new", "r"));
        assert!(fs::read_to_string(&stored.file).unwrap().contains("- name: u # me"));
        assert_eq!(fs::metadata(&stored.file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left over");
    }

    #[test]
    fn a_pipe_is_neither_read_again_nor_written() {
        let (_folder, mut piped) = stored(TEXT);
        fs::remove_file(&piped.file).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&piped.file).status().unwrap().success());
        piped.loaded.insert("id-token".into(), "old".into());
        assert_eq!(piped.read().unwrap()["id-token"], "old");
        assert!(piped.check(&["id-token"]).unwrap_err().ends_with("it is a pipe or a device; use a file"));
        assert!(piped.write(&[("id-token", "new")]).is_err());
    }

    #[test]
    fn a_file_that_kubectl_writes_or_that_cannot_be_edited_is_left_alone() {
        let (folder, locked) = stored(TEXT);
        fs::write(folder.path().join("config.lock"), "").unwrap();
        assert!(locked.check(&["id-token"]).unwrap_err().contains("config.lock if none is running"));
        assert!(locked.write(&[("id-token", "new")]).is_err());
        assert!(folder.path().join("config.lock").exists(), "the lock is another's");
        let (_folder, twice) = stored(&format!("{TEXT}a: 1\na: 2\n"));
        assert!(twice.check(&["id-token"]).unwrap_err().contains("a key twice"));
        let (_folder, gone) = stored("users: []\n");
        assert!(gone.read().unwrap_err().contains("no longer has the user \"u\""));
        assert!(stored("").1.read().is_err());
    }
}
