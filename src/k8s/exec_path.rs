//! Search path of credential plugins.
//!
//! launchd and systemd start programs with a minimal PATH, without `aws` or `gke-gcloud-auth-plugin`. The PATH of the
//! process itself cannot be changed safely while threads run, but the plugin's can.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Folders of package managers, below the root and the home folder.
const SYSTEM: &[&str] = &[
    "/usr/local/bin",
    "/opt/homebrew/bin",
    "/home/linuxbrew/.linuxbrew/bin",
    "/opt/local/bin",
    "/snap/bin",
    "/nix/var/nix/profiles/default/bin",
    "/run/current-system/sw/bin",
];
const HOME: &[&str] = &[
    ".krew/bin",
    ".asdf/shims",
    ".local/share/mise/shims",
    ".nix-profile/bin",
    ".local/state/nix/profile/bin",
    "google-cloud-sdk/bin",
    "go/bin",
    ".cargo/bin",
    "bin",
    ".local/bin",
];

/// Ordered list of folders in which to search for plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecPath {
    folders: Vec<PathBuf>,
}

impl ExecPath {
    /// Returns `configured`, then the folders of PATH, as in kubectl, then the usual folders that exist.
    pub fn new(configured: &[PathBuf]) -> Self {
        let home = etcetera::home_dir().ok();
        let path = env::var_os("PATH").unwrap_or_default();
        Self::of(configured, home.as_deref(), &env::split_paths(&path).collect::<Vec<_>>(), Path::is_dir)
    }

    /// Returns the search path for a process whose PATH is `path`.
    pub fn with_path(configured: &[PathBuf], path: &std::ffi::OsStr) -> Self {
        let home = etcetera::home_dir().ok();
        Self::of(configured, home.as_deref(), &env::split_paths(path).collect::<Vec<_>>(), Path::is_dir)
    }

    fn of(configured: &[PathBuf], home: Option<&Path>, path: &[PathBuf], exists: impl Fn(&Path) -> bool) -> Self {
        let usual = SYSTEM
            .iter()
            .map(PathBuf::from)
            .chain(home.iter().flat_map(|home| HOME.iter().map(|folder| home.join(folder))));
        // As in Go, no program of the working directory runs because of an empty or relative entry of PATH.
        let path = path.iter().filter(|folder| folder.is_absolute()).cloned();
        let mut folders: Vec<PathBuf> = Vec::new();
        for folder in configured.iter().cloned().chain(path).chain(usual.filter(|folder| exists(folder))) {
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
        Self { folders }
    }

    /// Returns the first executable with this name.
    pub fn find(&self, program: &str) -> Option<PathBuf> {
        self.folders.iter().map(|folder| folder.join(program)).find(|file| is_executable(file))
    }

    /// Returns the value of PATH for a plugin, so that its own children are found in the same folders.
    pub fn to_env(&self) -> OsString {
        // PATH cannot contain a folder whose name has a separator.
        let joinable = self.folders.iter().filter(|folder| env::join_paths([folder]).is_ok());
        env::join_paths(joinable).unwrap_or_default()
    }
}

#[cfg(unix)]
fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(file: &Path) -> bool {
    file.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_folders_come_first_then_path_then_the_usual_ones() {
        let path = ExecPath::of(
            &["/mine".into()],
            Some(Path::new("/home/ana")),
            &["".into(), "/usr/bin".into(), "bin".into(), "/mine".into()],
            |folder| folder == Path::new("/usr/local/bin") || folder == Path::new("/home/ana/.krew/bin"),
        );
        let wanted = ["/mine", "/usr/bin", "/usr/local/bin", "/home/ana/.krew/bin"];
        assert_eq!(path.folders, wanted.map(PathBuf::from));
        assert_eq!(path.to_env(), "/mine:/usr/bin:/usr/local/bin:/home/ana/.krew/bin");
    }

    #[test]
    fn only_executables_are_found() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("plugin"), "").unwrap();
        let path = ExecPath::of(&[folder.path().into()], None, &[], |_| true);
        assert_eq!(path.find("plugin"), None);
        assert!(ExecPath::of(&[], None, &["/bin".into()], |_| false).find("sh").is_some());
    }
}
