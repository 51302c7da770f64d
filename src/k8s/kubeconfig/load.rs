//! Reads one kubeconfig file as client-go does: a value of a wrong type makes the file invalid, and other errors only
//! matter where they are used.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Mutex,
};

use kube::config::Kubeconfig;
use serde_json::{Map, Value};

use super::shape;
use crate::{
    config::file::{first_document, foreign, with_line_feeds},
    tls::reason,
};

/// Lists of named entries, the key with each entry's content, and the keys of paths in it.
const ENTRIES: [(&str, &str, &[&str]); 3] = [
    ("clusters", "cluster", &["certificate-authority"]),
    ("users", "user", &["client-certificate", "client-key", "tokenFile"]),
    ("contexts", "context", &[]),
];

/// Reads kubeconfigs. Keeps the content of files that can be read only once: pipes, as in `--kubeconfig <(...)`.
#[derive(Default)]
pub struct Files {
    pipes: Mutex<HashMap<PathBuf, Vec<u8>>>,
}

impl Files {
    /// Reads a file. Relative paths in it are relative to its folder. `None`: it does not exist.
    ///
    /// # Errors
    /// Fails if the file cannot be read, is not YAML, or is invalid for client-go. The error has the position and the
    /// reason. A user whose plugin has an invalid `interactiveMode` keeps its name and loses its content.
    pub(super) fn read(&self, path: &Path) -> Result<Option<Kubeconfig>, String> {
        match self.content(path) {
            Ok(bytes) => parse(&text(&bytes)?, path.parent().unwrap_or(Path::new("."))).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("cannot read it: {}", reason(&error))),
        }
    }

    fn content(&self, path: &Path) -> io::Result<Vec<u8>> {
        if path.metadata()?.is_file() {
            return fs::read(path);
        }
        let mut pipes = self.pipes.lock().expect("no panic while the lock is held");
        if let Some(content) = pipes.get(path) {
            return Ok(content.clone());
        }
        let content = fs::read(path)?;
        pipes.insert(path.to_owned(), content.clone());
        Ok(content)
    }
}

/// Decodes UTF-8, and UTF-16 with a byte order mark, as PowerShell writes it.
fn text(bytes: &[u8]) -> Result<String, String> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16(&units).map_err(|_| "it is not valid UTF-16".to_owned())
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => {
            String::from_utf8(rest.to_vec()).map_err(|_| "it is not valid UTF-8".to_owned())
        }
    }
}

fn parse(text: &str, folder: &Path) -> Result<Kubeconfig, String> {
    let text = &*with_line_feeds(text);
    let text = first_document(text);
    let mut document = foreign(text)?;
    if document.is_null() {
        return Ok(Kubeconfig::default());
    }
    shape::give(&mut document, text)?;
    let root = document.as_object_mut().expect("it has its shape");
    drop_unset(root);
    // Both have the same value in every kubeconfig, and may be absent.
    for (key, wanted) in [("kind", "Config"), ("apiVersion", "v1")] {
        match root.remove(key) {
            Some(other) if other != wanted => return Err(format!("{key} is {other}, and has to be {wanted:?}")),
            _ => {}
        }
    }
    // Only kubectl uses these.
    root.retain(|key, _| !matches!(key.as_str(), "preferences" | "extensions"));
    for (key, content, paths) in ENTRIES {
        let list = root.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten();
        for named in list.filter_map(Value::as_object_mut) {
            named.entry("name").or_insert_with(|| "".into());
            let entry = named.entry(content).or_insert_with(|| Value::Object(Map::new()));
            if !entry.as_object_mut().is_some_and(|entry| prepare(entry, paths, folder)) {
                named.remove(content);
            }
        }
    }
    // The parser's message may contain a value.
    serde_json::from_value(document).map_err(|_| "it is not a kubeconfig".to_owned())
}

/// Removes empty and null values, which mean the same as absent ones.
fn drop_unset(entry: &mut Map<String, Value>) {
    entry.retain(|_, value| !value.is_null() && value.as_str() != Some(""));
}

/// Makes an entry valid for kube. Returns false if its plugin has an invalid `interactiveMode`, which is an error only
/// when the user is used.
fn prepare(entry: &mut Map<String, Value>, paths: &[&str], folder: &Path) -> bool {
    drop_unset(entry);
    if paths.is_empty() {
        // A missing cluster is an error only when the context is used.
        entry.entry("cluster").or_insert_with(|| "".into());
    }
    // Only plugins get extensions, and only complete ones.
    if let Some(Value::Array(extensions)) = entry.get_mut("extensions") {
        extensions.retain(|it| it.get("name").is_some_and(Value::is_string) && it.get("extension").is_some());
    }
    for (key, value) in entry.iter_mut() {
        if let (Value::String(text), true) = (value, paths.contains(&key.as_str())) {
            *text = folder.join(&*text).to_string_lossy().into_owned();
        }
    }
    if let Some(provider) = entry.get_mut("auth-provider").and_then(Value::as_object_mut) {
        provider.entry("name").or_insert_with(|| "".into());
        provider.get_mut("config").and_then(Value::as_object_mut).into_iter().for_each(drop_unset);
    }
    let Some(exec) = entry.get_mut("exec").and_then(Value::as_object_mut) else { return true };
    if let Some(Value::String(command)) = exec.get_mut("command")
        && command.contains('/')
    {
        *command = folder.join(&*command).to_string_lossy().into_owned();
    }
    exec.retain(|key, value| key != "interactiveMode" || value != "");
    let mode = exec.get("interactiveMode").and_then(Value::as_str);
    mode.is_none_or(|mode| matches!(mode, "Never" | "IfAvailable" | "Always"))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn parsed(text: &str) -> Kubeconfig {
        parse(text, Path::new("/home/ana/.kube")).unwrap()
    }

    #[test]
    fn empty_values_and_nulls_are_unset() {
        let config = parsed(
            "clusters: [{name: c, cluster: {server: 'https://a', certificate-authority-data: '', certificate-authority: ca.crt, proxy-url: null}}]\n\
             users: [{name: u, user: {client-certificate-data: '', client-key-data: '', token: t}}]\ncurrent-context: ''\ncontexts: null\n",
        );
        let cluster = config.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.certificate_authority.as_deref(), Some("/home/ana/.kube/ca.crt"));
        assert_eq!((&cluster.certificate_authority_data, &cluster.proxy_url), (&None, &None));
        assert!(config.auth_infos[0].auth_info.as_ref().unwrap().client_certificate_data.is_none());
        assert_eq!(config.current_context, None);
    }

    #[test]
    fn nulls_inside_values_and_unknown_keys_harm_nothing() {
        let config = parsed(
            "clusters: [{name: c, cluster: {server: 'https://a', extensions: [{name: a}, null, {name: b, extension: {c: 1}}]}}]\n\
             users: [{name: u, user: {as: x, as-groups: [x, null], as-user-extra: {a: null}, exec: {command: p, provideClusterInfo: null, \
             args: [null], env: [{name: A, value: null, more: {a: 1}}]}}}]\n",
        );
        assert_eq!(config.clusters[0].cluster.as_ref().unwrap().extensions.as_ref().unwrap().len(), 1);
        let user = config.auth_infos[0].auth_info.as_ref().unwrap();
        assert_eq!(user.impersonate_groups.as_deref(), Some(&["x".to_owned(), String::new()][..]));
        let exec = user.exec.as_ref().unwrap();
        assert!(!exec.provide_cluster_info && exec.args.as_deref() == Some(&[String::new()][..]));
        assert_eq!(exec.env.as_ref().unwrap()[0].keys().collect::<Vec<_>>(), ["name"]);
    }

    #[test]
    fn an_entry_that_is_incomplete_harms_no_other() {
        let config = parsed(
            "contexts: [{name: half, context: {user: x}}, {name: one, context: {cluster: c, user: u}}, {context: {cluster: c}}]\n\
             clusters: [{name: none}, null, {name: c, cluster: {server: 'https://a'}}]\n\
             users: [{name: u, user: {token: t}}, {name: v, user: {auth-provider: {config: {a: b}}}}, \
             {name: odd, user: {exec: {interactiveMode: Sometimes}}}, {name: unset, user: {exec: {interactiveMode: ''}}}]\n",
        );
        assert!(config.contexts.iter().all(|named| named.context.is_some()));
        assert!(config.clusters.iter().all(|named| named.cluster.is_some()));
        let users: Vec<bool> = config.auth_infos.iter().map(|named| named.auth_info.is_some()).collect();
        assert_eq!(users, [true, true, false, true]);
    }

    #[test]
    fn the_last_of_two_keys_counts_and_only_the_first_document() {
        let config = parsed(
            "current-context: a\ncurrent-context: b\nusers: [{name: u, user: {token: first, token: last}}]\n---\n{a: [\n",
        );
        assert_eq!(config.current_context.as_deref(), Some("b"));
        assert_eq!(config.auth_infos[0].auth_info.as_ref().unwrap().token.as_ref().unwrap().expose_secret(), "last");
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_refused_without_its_text() {
        let refused = |text| parse(text, Path::new(".")).unwrap_err();
        assert_eq!(
            refused("users:\n- {name: u, user: {token: secret\n"),
            "it is not valid YAML: unclosed bracket '{' (line 2, column 19)"
        );
        let tab = "it is not valid YAML: line 2 is indented with a tab, and needs spaces";
        assert_eq!(refused("kind: Config\n\tusers: []\n"), tab);
        assert_eq!(refused("kind: Secret\n"), "kind is \"Secret\", and has to be \"Config\"");
        assert_eq!(refused("apiVersion: v2\n"), "apiVersion is \"v2\", and has to be \"v1\"");
        assert_eq!(refused("users: {}\n"), "users is keys and values, and has to be a list (line 1)");
        let two = "clusters has two entries called \"c\": rename or remove one of them (line 1)";
        assert_eq!(refused("clusters: [{name: c}, {name: d}, {name: c}]"), two);
    }

    #[test]
    fn base64_may_have_line_ends_and_a_plugin_with_a_slash_is_below_its_file() {
        let config = parsed(
            "clusters: [{name: c, cluster: {server: 'https://a', certificate-authority-data: \"QUJD\\nREVG\\r\\n\"}}]\n\
             users: [{name: u, user: {tokenFile: t, exec: {command: ./bin/plugin, args: ['']}}}]\n",
        );
        assert_eq!(
            config.clusters[0].cluster.as_ref().unwrap().certificate_authority_data.as_deref(),
            Some("QUJDREVG")
        );
        let user = config.auth_infos[0].auth_info.as_ref().unwrap();
        assert_eq!(user.token_file.as_deref(), Some("/home/ana/.kube/t"));
        let exec = user.exec.as_ref().unwrap();
        assert_eq!(exec.command.as_deref(), Some("/home/ana/.kube/./bin/plugin"));
        assert_eq!(exec.args.as_deref(), Some(&[String::new()][..]));
    }

    #[test]
    fn a_pipe_is_read_once_and_its_content_is_kept() {
        use std::os::fd::AsRawFd;
        let (reader, mut writer) = io::pipe().unwrap();
        io::Write::write_all(&mut writer, b"current-context: a").unwrap();
        drop(writer);
        let (files, path) = (Files::default(), PathBuf::from(format!("/dev/fd/{}", reader.as_raw_fd())));
        for _ in 0..2 {
            assert_eq!(files.read(&path).unwrap().unwrap().current_context.as_deref(), Some("a"));
        }
        assert!(Files::default().read(Path::new("/dev/null")).unwrap().unwrap().current_context.is_none());
    }

    #[test]
    fn files_of_powershell_are_read() {
        let utf16: Vec<u8> = [0xfeff_u16].into_iter().chain("a: 1".encode_utf16()).flat_map(u16::to_le_bytes).collect();
        assert_eq!(text(&utf16).unwrap(), "a: 1");
        assert_eq!(text(b"\xef\xbb\xbfa: 1").unwrap(), "a: 1");
        assert!(text(b"\xff").is_err());
    }
}
