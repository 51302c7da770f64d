//! Quotes words for commands that a person pastes into a shell.

use std::path::{PathBuf, absolute};

use super::KubeconfigPaths;

/// Returns the word, in quotes if a shell needs them.
pub fn quoted(word: &str) -> String {
    let is_plain = |each: char| each.is_ascii_alphanumeric() || "-_./:=@%+,".contains(each);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Returns the line of a POSIX shell that exports a variable.
pub fn export(name: &str, value: &str) -> String {
    format!("export {name}='{}'\n", value.replace('\'', r"'\''"))
}

/// Returns the line of fish, where \' and \\ count between single quotes.
pub fn export_fish(name: &str, value: &str) -> String {
    format!("set -gx {name} '{}'\n", value.replace('\\', r"\\").replace('\'', r"\'"))
}

/// Returns the line of PowerShell.
pub fn export_powershell(name: &str, value: &str) -> String {
    format!("$env:{name} = '{}'\n", value.replace('\'', "''"))
}

/// Returns kubectl as it reads these files. It names them unless every shell finds them: the shell of a person who reads a page
/// or a log does not have the variables of adit's shell.
pub fn kubectl(files: &KubeconfigPaths) -> String {
    match (named(files), files.0.len()) {
        (None, _) => "kubectl".to_owned(),
        (Some(path), 1) => format!("kubectl --kubeconfig {}", quoted(&path)),
        (Some(list), _) => format!("KUBECONFIG={} kubectl", quoted(&list)),
    }
}

/// Returns an `adit` command that reads these files. It names them for the same reason as [`kubectl`].
pub fn adit(command: &str, files: &KubeconfigPaths) -> String {
    let named = named(files).map(|list| format!(" --kubeconfig {}", quoted(&list)));
    format!("adit {command}{}", named.unwrap_or_default())
}

/// Returns the absolute paths as a list for an option. `None`: every shell finds these files, or they are pipes, which can be
/// read only once.
pub fn named(files: &KubeconfigPaths) -> Option<String> {
    let paths = files.0.iter().map(|path| absolute(path).unwrap_or_else(|_| path.clone())).collect::<Vec<_>>();
    let usual = etcetera::home_dir().map(|home| home.join(".kube/config")).ok();
    let is_usual = |path: &PathBuf| Some(path) == usual.as_ref() || path.starts_with("/dev");
    (!paths.iter().all(is_usual)).then(|| joined(&paths))
}

/// Returns the paths as a list for an option. A single path may contain a colon; those of a list never do.
pub fn joined(paths: &[PathBuf]) -> String {
    let words: Vec<_> = paths.iter().map(|path| path.to_string_lossy()).collect();
    words.join(":")
}

/// Returns whether a line of advice is a command to paste.
pub fn is_command(line: &str) -> bool {
    ["kubectl ", "KUBECONFIG=", "adit ", "aws ", "gcloud ", "az "].iter().any(|start| line.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_every_kubeconfig_but_the_usual_one() {
        let of = |paths: &[&str]| kubectl(&KubeconfigPaths(paths.iter().map(Into::into).collect()));
        let usual = etcetera::home_dir().unwrap().join(".kube/config");
        assert_eq!(of(&[usual.to_str().unwrap()]), "kubectl");
        assert_eq!((of(&[]), of(&["/dev/fd/63"])), ("kubectl".to_owned(), "kubectl".to_owned()));
        assert_eq!(of(&["/a b/c"]), "kubectl --kubeconfig '/a b/c'");
        assert_eq!(of(&["/a", "/b"]), "KUBECONFIG=/a:/b kubectl");
        assert_eq!(of(&["/a:b"]), "kubectl --kubeconfig /a:b");
        let relative = absolute("a").unwrap();
        assert_eq!(of(&["a"]), format!("kubectl --kubeconfig {}", quoted(relative.to_str().unwrap())));
        let of = |paths: &[&str]| adit("doctor", &KubeconfigPaths(paths.iter().map(Into::into).collect()));
        assert_eq!((of(&[]), of(&["/dev/fd/63"])), ("adit doctor".to_owned(), "adit doctor".to_owned()));
        assert_eq!(of(&["/a b/x.yaml"]), "adit doctor --kubeconfig '/a b/x.yaml'");
        assert_eq!(of(&["/a", "/b"]), "adit doctor --kubeconfig /a:/b");
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        let cases = [
            ("web.shop:80", "web.shop:80"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$(id)", "'$(id)'"),
            ("a;b", "'a;b'"),
            ("a\nb", "'a\nb'"),
        ];
        for (word, expected) in cases {
            assert_eq!(quoted(word), expected);
        }
    }
}
