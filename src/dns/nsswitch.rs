//! `/etc/nsswitch.conf` lists the services that glibc asks. `myhostname` of systemd answers every name below localhost
//! (nss-myhostname(8)).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Act, Part, State, failed};
use crate::atomic_file;

/// The file below the root folder, and adit's copy of the original.
const FILE: &str = "etc/nsswitch.conf";
const COPY: &str = "etc/nsswitch.conf.before-adit";

/// The service that answers names below localhost, and its library.
const SERVICE: &str = "myhostname";
const LIBRARY: &str = "libnss_myhostname.so.2";

/// Folders of libraries; Debian has a subfolder per architecture.
const FOLDERS: [&str; 4] = ["usr/lib", "usr/lib64", "lib", "lib64"];

/// Commands that install the library, by the distribution's package manager.
const PACKAGES: [(&str, &str); 4] = [
    ("apt-get", "sudo apt-get install libnss-myhostname"),
    ("dnf", "sudo dnf install systemd-libs"),
    ("zypper", "sudo zypper install libnss_myhostname2"),
    ("pacman", "sudo pacman -S systemd-libs"),
];

/// Looks at the file, or changes it.
pub fn part(root: &Path, act: Act) -> Part {
    let nsswitch = Nsswitch { root };
    let state = match act {
        Act::Look => nsswitch.look(),
        Act::Install => nsswitch.install(),
        Act::Uninstall => nsswitch.uninstall(),
    };
    Part { name: "localhost".to_owned(), state, file: nsswitch.file() }
}

/// Returns the command that makes names below localhost resolve. `None`: no command can.
pub fn command(root: &Path) -> Option<String> {
    Nsswitch { root }.command()
}

/// The file, below a root folder.
struct Nsswitch<'r> {
    root: &'r Path,
}

impl Nsswitch<'_> {
    /// Returns whether names below localhost resolve, according to the file.
    fn look(&self) -> State {
        match fs::read_to_string(self.file()) {
            Ok(text) => service(&text).map_or(State::Lacks, asks),
            Err(error) => failed(&self.file(), &error),
        }
    }

    /// Adds `myhostname` to the file, unless names resolve already.
    fn install(&self) -> State {
        let text = match fs::read_to_string(self.file()) {
            Ok(text) => text,
            Err(error) => return failed(&self.file(), &error),
        };
        if let Some(service) = service(&text) {
            return asks(service);
        }
        if !self.has_library() {
            let command = self.package().unwrap_or("this system has no package for it that adit knows");
            return State::NeedsPackage(format!("{LIBRARY} is missing: {command}"));
        }
        let Some(changed) = with_service(&text) else {
            return State::Failed(format!("{} has no line 'hosts:'", self.file().display()));
        };
        let copied = atomic_file::write(&self.root.join(COPY), text.as_bytes(), 0o644);
        // A symlink (authselect) is kept.
        let written = copied.and_then(|()| atomic_file::rewrite(&self.file(), changed.as_bytes()));
        written.map_or_else(|error| failed(&self.file(), &error), |()| self.look())
    }

    /// Reverts [`install`](Self::install). The file is restored byte for byte, unless another program has changed it since; then
    /// only the service is removed.
    fn uninstall(&self) -> State {
        let (before, now) = match (fs::read_to_string(self.root.join(COPY)), fs::read_to_string(self.file())) {
            (Ok(before), Ok(now)) => (before, now),
            // adit was never installed here.
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => return self.look(),
            (Err(error), _) | (_, Err(error)) => return failed(&self.file(), &error),
        };
        let is_ours = with_service(&before).is_some_and(|changed| changed == now);
        let restored = if is_ours { before } else { without_service(&now) };
        let written = atomic_file::rewrite(&self.file(), restored.as_bytes());
        let written = written.and_then(|()| fs::remove_file(self.root.join(COPY)));
        written.map_or_else(|error| failed(&self.file(), &error), |()| self.look())
    }

    /// Returns the command that makes names resolve. `None`: no command can.
    fn command(&self) -> Option<String> {
        let has_glibc = self.file().exists();
        match self.has_library() {
            true => has_glibc.then(|| "sudo adit dns install".to_owned()),
            false => self.package().filter(|_| has_glibc).map(|command| format!("{command} && sudo adit dns install")),
        }
    }

    /// Returns the command that installs the library.
    fn package(&self) -> Option<&'static str> {
        let has = |program: &str| self.root.join("usr/bin").join(program).exists();
        PACKAGES.iter().find(|(program, _)| has(program)).map(|(_, command)| *command)
    }

    /// Returns the path of the file.
    fn file(&self) -> PathBuf {
        self.root.join(FILE)
    }

    fn has_library(&self) -> bool {
        FOLDERS.iter().map(|folder| self.root.join(folder)).any(|folder| {
            let of_architectures = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
            folder.join(LIBRARY).exists() || of_architectures.into_iter().any(|folder| folder.join(LIBRARY).exists())
        })
    }
}

/// Services that answer no name below localhost.
const MINIMAL: [&str; 3] = ["mdns_minimal", "mdns4_minimal", "mdns6_minimal"];

fn asks(service: &str) -> State {
    State::Asks(service.to_owned())
}

/// Returns the services of the line `hosts:`, and their position in the text.
fn hosts(text: &str) -> Option<(usize, &str)> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let content = line.split('#').next().unwrap_or_default();
        if let Some(list) = content.trim_start().strip_prefix("hosts:") {
            let start = at + (content.len() - list.len());
            return Some((start, list));
        }
        at += line.len();
    }
    None
}

/// Returns the first service that answers names below localhost and is reached.
fn service(text: &str) -> Option<&'static str> {
    let (_, list) = hosts(text)?;
    let end = list.match_indices('[').find(|(at, _)| {
        // These services know only names below `.local`. To them, no other name is NOTFOUND (nss-mdns: README.md).
        let before = list[..*at].split_whitespace().next_back().unwrap_or_default();
        !MINIMAL.contains(&before) && ends_early(&list[*at..])
    });
    let asked = end.map_or(list, |(at, _)| &list[..at]);
    asked.split_whitespace().find_map(|word| [SERVICE, "resolve"].into_iter().find(|service| *service == word))
}

/// Returns whether the first actions of a list, such as `[NOTFOUND=return]`, may end the search when a service does not know a
/// name (nsswitch.conf(5)), so that later services are not asked.
fn ends_early(list: &str) -> bool {
    let actions = list.trim_start_matches('[').split(']').next().unwrap_or_default().to_ascii_lowercase();
    let mut actions = actions.split_whitespace().filter_map(|action| action.split_once('='));
    actions.any(|(status, action)| action == "return" && status != "success")
}

/// Returns the text with the service before all that use the network, but behind `files` if that is the first. `None`: the text
/// has no line `hosts:`.
fn with_service(text: &str) -> Option<String> {
    let (start, list) = hosts(text)?;
    let indent = list.len() - list.trim_start().len();
    let behind_files = list.trim_start().strip_prefix("files").filter(|rest| {
        // Behind `files [NOTFOUND=return]`, the service would never be asked.
        rest.chars().next().is_none_or(char::is_whitespace) && !rest.trim_start().starts_with('[')
    });
    let at = start + behind_files.map_or(0, |_| indent + "files".len());
    Some(format!("{} {SERVICE}{}", &text[..at], &text[at..]))
}

fn without_service(text: &str) -> String {
    let Some((start, list)) = hosts(text) else { return text.to_owned() };
    let word = format!(" {SERVICE}");
    let is_word = |at: &usize| list[at + word.len()..].chars().next().is_none_or(char::is_whitespace);
    match list.find(&word).filter(is_word) {
        Some(at) => format!("{}{}", &text[..start + at], &text[start + at + word.len()..]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str =
        "# /etc/nsswitch.conf\n\npasswd:         files\nhosts:          files dns # names\nnetworks:       files\n";

    fn root(text: Option<&str>, has_library: bool) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        if let Some(text) = text {
            fs::write(root.path().join(FILE), text).unwrap();
        }
        let libraries = root.path().join("usr/lib/x86_64-linux-gnu");
        fs::create_dir_all(&libraries).unwrap();
        if has_library {
            fs::write(libraries.join(LIBRARY), "").unwrap();
        }
        root
    }

    #[test]
    fn the_file_is_changed_in_one_word_and_restored_byte_for_byte() {
        let root = root(Some(DEBIAN), true);
        let system = Nsswitch { root: root.path() };
        assert_eq!(system.look(), State::Lacks);
        for _ in 0..2 {
            assert_eq!(system.install(), asks(SERVICE));
        }
        let changed = fs::read_to_string(system.file()).unwrap();
        assert_eq!(changed, DEBIAN.replace("files dns #", "files myhostname dns #"));
        for _ in 0..2 {
            assert_eq!(system.uninstall(), State::Lacks);
        }
        assert_eq!(fs::read_to_string(system.file()).unwrap(), DEBIAN);
        let left: Vec<_> =
            fs::read_dir(root.path().join("etc")).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["nsswitch.conf"]);
    }

    #[test]
    fn a_link_stays_a_link_and_the_file_behind_it_is_changed() {
        let root = root(None, true);
        let behind = root.path().join("etc/authselect/nsswitch.conf");
        fs::create_dir_all(behind.parent().unwrap()).unwrap();
        fs::write(&behind, DEBIAN).unwrap();
        let system = Nsswitch { root: root.path() };
        std::os::unix::fs::symlink("authselect/nsswitch.conf", system.file()).unwrap();
        let is_link = || fs::symlink_metadata(system.file()).unwrap().is_symlink();
        assert_eq!((system.install(), is_link()), (asks(SERVICE), true));
        assert!(fs::read_to_string(&behind).unwrap().contains("files myhostname dns"));
        assert_eq!((system.uninstall(), is_link()), (State::Lacks, true));
        assert_eq!(fs::read_to_string(&behind).unwrap(), DEBIAN);
        let left = |folder: &Path| fs::read_dir(folder).unwrap().count();
        assert_eq!((left(behind.parent().unwrap()), left(&root.path().join("etc"))), (1, 2));
    }

    #[test]
    fn what_somebody_else_has_changed_meanwhile_stays() {
        let root = root(Some(DEBIAN), true);
        let system = Nsswitch { root: root.path() };
        assert_eq!(system.install(), asks(SERVICE));
        let changed = fs::read_to_string(system.file()).unwrap() + "shadow: files\n";
        fs::write(system.file(), changed).unwrap();
        assert_eq!(system.uninstall(), State::Lacks);
        assert_eq!(fs::read_to_string(system.file()).unwrap(), format!("{DEBIAN}shadow: files\n"));
    }

    #[test]
    fn systems_that_need_nothing_or_lack_something_are_left_alone() {
        let resolved = DEBIAN.replace("files dns", "files resolve [!UNAVAIL=return] dns");
        let own = DEBIAN.replace("files dns", "files dns myhostname");
        let minimal = DEBIAN.replace("files dns", "files mdns4_minimal [NOTFOUND=return] dns myhostname");
        for (text, has_library, wanted) in [
            (Some(resolved.as_str()), false, Some(asks("resolve"))),
            (Some(&own), true, Some(asks(SERVICE))),
            (Some(&minimal), true, Some(asks(SERVICE))),
            (Some(DEBIAN), false, None),
            (Some("passwd: files\n"), true, None),
            (None, true, None),
        ] {
            let root = root(text, has_library);
            let system = Nsswitch { root: root.path() };
            let found = system.install();
            match wanted {
                Some(wanted) => assert_eq!(found, wanted),
                None => assert!(matches!(found, State::NeedsPackage(_) | State::Failed(_)), "{found:?}"),
            }
            assert_eq!(fs::read_to_string(root.path().join(FILE)).ok().as_deref(), text);
            assert!(!root.path().join(COPY).exists());
        }
    }

    #[test]
    fn the_command_that_repairs_is_that_of_the_system() {
        let without = root(Some(DEBIAN), false);
        assert_eq!(command(without.path()), None);
        fs::create_dir_all(without.path().join("usr/bin")).unwrap();
        fs::write(without.path().join("usr/bin/dnf"), "").unwrap();
        assert_eq!(command(without.path()).unwrap(), "sudo dnf install systemd-libs && sudo adit dns install");
        let installed = part(without.path(), Act::Install).state;
        assert!(matches!(installed, State::NeedsPackage(what) if what.contains("dnf install systemd-libs")));
        let with = root(Some(DEBIAN), true);
        assert_eq!(command(with.path()).as_deref(), Some("sudo adit dns install"));
        assert_eq!(command(root(None, true).path()), None, "a system without glibc");
    }

    #[test]
    fn the_line_is_found_in_each_of_its_forms() {
        for (text, changed) in [
            ("hosts: files dns\n", "hosts: files myhostname dns\n"),
            ("hosts:\tfiles\n", "hosts:\tfiles myhostname\n"),
            (
                "  hosts:files mdns4_minimal [NOTFOUND=return] dns",
                "  hosts:files myhostname mdns4_minimal [NOTFOUND=return] dns",
            ),
            ("hosts: dns\n", "hosts: myhostname dns\n"),
            ("#hosts: files\nhosts: files # hosts: x\n", "#hosts: files\nhosts: files myhostname # hosts: x\n"),
        ] {
            assert_eq!(with_service(text).as_deref(), Some(changed));
            assert_eq!(without_service(changed), text);
        }
        for (text, changed) in [
            ("hosts: dns [NOTFOUND=return] files\n", "hosts: myhostname dns [NOTFOUND=return] files\n"),
            ("hosts: mdns4 [notfound=RETURN] files dns\n", "hosts: myhostname mdns4 [notfound=RETURN] files dns\n"),
            ("hosts: files [NOTFOUND=return] dns\n", "hosts: myhostname files [NOTFOUND=return] dns\n"),
            (
                "hosts: files dns [!UNAVAIL=return] myhostname\n",
                "hosts: files myhostname dns [!UNAVAIL=return] myhostname\n",
            ),
        ] {
            assert_eq!(service(text), None, "{text}");
            assert_eq!((with_service(text).as_deref(), service(changed)), (Some(changed), Some(SERVICE)));
            assert_eq!(without_service(changed), text);
        }
        assert_eq!(service("hosts: files [SUCCESS=return] myhostname dns [NOTFOUND=return] wins\n"), Some(SERVICE));
        assert_eq!(service("hosts: files [!SUCCESS=return] myhostname\n"), None);
        assert_eq!(service("hosts: files resolve [!UNAVAIL=return] dns\n"), Some("resolve"));
        assert_eq!(with_service("#hosts: files\n"), None);
        assert_eq!(service("hosts: files # myhostname\n"), None);
    }
}
