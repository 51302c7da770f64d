//! The files that a configuration names, and whether adit could use them. Only `adit check` tries them.

use super::*;
use crate::tls;

/// A file that a key names.
pub(super) struct NamedFile {
    key: String,
    place: Place,
    file: PathBuf,
    usage: Usage,
}

/// How adit uses a file.
#[derive(Clone, Copy)]
pub(super) enum Usage {
    Read,
    /// PEM certificates.
    Certificates,
    /// A PEM private key.
    Key,
    /// adit appends lines to it; it need not exist.
    Append,
}

impl Walk {
    pub(super) fn file(&mut self, node: &Node, usage: Usage) -> Option<PathBuf> {
        let file = defaults::expand_home(&self.text(node)?);
        self.files.push(NamedFile { key: self.path(), place: node.place, file: file.clone(), usage });
        Some(file)
    }

    /// Records the file of a `kubeconfig` key. Files of a list are not recorded, because they may be missing, as in kubectl.
    pub(super) fn kubeconfig(&mut self, node: &Node) -> Option<KubeconfigPaths> {
        // Unlike $KUBECONFIG, which the shell expands, and which kubectl reads too.
        let expanded = |path: PathBuf| defaults::expand_home(&path.to_string_lossy());
        let paths = defaults::kubeconfig_paths(Some(&self.path_list(node)?)).0;
        let paths = KubeconfigPaths(paths.into_iter().map(expanded).collect());
        if let [file] = &paths.0[..] {
            self.files.push(NamedFile { key: self.path(), place: node.place, file: file.clone(), usage: Usage::Read });
        }
        Some(paths)
    }
}

/// Returns a problem for each file that cannot be used.
pub(super) fn problems(named: &[NamedFile]) -> Vec<Problem> {
    let problem = |named: &NamedFile| {
        let error = named.usage.attempt(&named.file).err()?;
        Some(Problem { path: named.key.clone(), place: named.place, message: error.to_string(), hint: None })
    };
    let mut problems: Vec<Problem> = named.iter().filter_map(problem).collect();
    problems.sort_by_key(|problem| problem.place);
    problems
}

impl Usage {
    fn attempt(self, file: &Path) -> io::Result<()> {
        match self {
            Self::Read => tls::read(file).map(drop),
            Self::Certificates => tls::certificates(file).map(drop),
            Self::Key => tls::private_key(file).map(drop),
            Self::Append => appendable(file),
        }
    }
}

/// Opens a file to append to. Deletes it again if it did not exist.
fn appendable(file: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.append(true);
    let opened = match options.open(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            options.create_new(true).open(file).and_then(|_| fs::remove_file(file))
        }
        opened => opened.map(drop),
    };
    opened
        .map_err(|error| io::Error::new(error.kind(), format!("cannot write {:?}: {}", file.display(), reason(&error))))
}
