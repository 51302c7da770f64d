//! Quotes words for commands that a person pastes into a shell.

use std::{env, path::absolute};

use super::KubeconfigPaths;

/// Returns the word, in quotes if a shell needs them.
pub fn quoted(word: &str) -> String {
    let is_plain = |each: char| each.is_ascii_alphanumeric() || "-_./:=@%+,".contains(each);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Returns kubectl as it reads these files. They are named unless they are the one that every shell means: that of a person who reads
/// a page or a log has not the variables of adit's.
pub fn kubectl(files: &KubeconfigPaths) -> String {
    let usual = etcetera::home_dir().map(|home| home.join(".kube/config")).ok();
    let shown = files.0.iter().map(|path| absolute(path).unwrap_or_else(|_| path.clone()));
    match shown.collect::<Vec<_>>().as_slice() {
        // A pipe is read once, and the service account of a pod has no file.
        paths if paths.iter().all(|path| Some(path) == usual.as_ref() || path.starts_with("/dev")) => {
            "kubectl".to_owned()
        }
        [path] => format!("kubectl --kubeconfig {}", quoted(&path.display().to_string())),
        paths => {
            let list = env::join_paths(paths).unwrap_or_default();
            format!("KUBECONFIG={} kubectl", quoted(&list.to_string_lossy()))
        }
    }
}

/// Returns whether a line of advice is a command to paste.
pub fn is_command(line: &str) -> bool {
    ["kubectl ", "KUBECONFIG=", "adit ", "aws ", "gcloud ", "az "].iter().any(|start| line.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_names_every_kubeconfig_but_the_usual_one() {
        let of = |paths: &[&str]| kubectl(&KubeconfigPaths(paths.iter().map(Into::into).collect()));
        let usual = etcetera::home_dir().unwrap().join(".kube/config");
        assert_eq!(of(&[usual.to_str().unwrap()]), "kubectl");
        assert_eq!((of(&[]), of(&["/dev/fd/63"])), ("kubectl".to_owned(), "kubectl".to_owned()));
        assert_eq!(of(&["/a b/c"]), "kubectl --kubeconfig '/a b/c'");
        assert_eq!(of(&["/a", "/b"]), "KUBECONFIG=/a:/b kubectl");
        let relative = absolute("a").unwrap();
        assert_eq!(of(&["a"]), format!("kubectl --kubeconfig {}", quoted(relative.to_str().unwrap())));
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
