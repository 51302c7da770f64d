//! One kubeconfig file, read as client-go reads it: only the entries that are used are judged.

use std::{fs, path::Path};

use kube::config::Kubeconfig;
use serde_json::{Map, Value};

use crate::config::file::documents;

/// Lists of named entries, the key of each entry's content, and those of its keys that are paths or base64.
const ENTRIES: [(&str, &str, &[&str]); 3] = [
    ("clusters", "cluster", &["certificate-authority"]),
    ("users", "user", &["client-certificate", "client-key", "tokenFile"]),
    ("contexts", "context", &[]),
];

/// Reads a file. Relative paths in it are below its folder.
///
/// # Errors
/// It cannot be read, or is no YAML. An entry that is incomplete or does not parse keeps its name and loses its content.
pub(super) fn file(path: &Path) -> Result<Kubeconfig, String> {
    let bytes = fs::read(path).map_err(|error| format!("cannot read it: {error}"))?;
    parse(&text(&bytes)?, path.parent().unwrap_or(Path::new(".")))
}

/// Decodes UTF-8 and UTF-16 with a byte order mark, as PowerShell writes it.
fn text(bytes: &[u8]) -> Result<String, String> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16(&units).map_err(|_| "it is no UTF-16".to_owned())
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => {
            String::from_utf8(rest.to_vec()).map_err(|_| "it is no UTF-8".to_owned())
        }
    }
}

fn parse(text: &str, folder: &Path) -> Result<Kubeconfig, String> {
    let mut merged = Kubeconfig::default();
    for mut document in documents(text)?.into_iter().filter(|document| !document.is_null()) {
        let Some(root) = document.as_object_mut() else { return Err("it has no keys and values".to_owned()) };
        drop_unset(root);
        for (list, content, paths) in ENTRIES {
            let Some(list) = root.get_mut(list).and_then(Value::as_array_mut) else { continue };
            list.retain(|named| named.get("name").is_some_and(Value::is_string));
            for named in list.iter_mut().filter_map(Value::as_object_mut) {
                if let Some(entry) = named.get_mut(content).and_then(Value::as_object_mut) {
                    prepare(entry, paths, folder);
                }
                if !is_usable(content, named) {
                    named.remove(content);
                }
            }
        }
        let next = serde_json::from_value(document).map_err(|error| error.to_string())?;
        merged = merged.merge(next).map_err(|error| error.to_string())?;
    }
    Ok(merged)
}

/// Empty and null values mean the same as absent ones.
fn drop_unset(entry: &mut Map<String, Value>) {
    entry.retain(|_, value| !value.is_null() && value.as_str() != Some(""));
}

fn prepare(entry: &mut Map<String, Value>, paths: &[&str], folder: &Path) {
    drop_unset(entry);
    for (key, value) in entry.iter_mut() {
        let Value::String(text) = value else { continue };
        if paths.contains(&key.as_str()) {
            *text = folder.join(&*text).to_string_lossy().into_owned();
        } else if key.ends_with("-data") {
            // Go's decoder passes over line ends.
            text.retain(|char| char != '\r' && char != '\n');
        }
    }
    if let Some(Value::String(command)) = entry.get_mut("exec").and_then(|exec| exec.get_mut("command"))
        && command.contains('/')
    {
        *command = folder.join(&*command).to_string_lossy().into_owned();
    }
    let has_tls = ["certificate-authority", "certificate-authority-data", "insecure-skip-tls-verify"]
        .iter()
        .any(|key| entry.get(*key).is_some_and(|value| value != &Value::Bool(false)));
    if let Some(Value::String(server)) = entry.get_mut("server")
        && !server.contains("://")
    {
        // client-go: https where the entry says something about TLS, else http.
        *server = format!("{}://{server}", if has_tls { "https" } else { "http" });
    }
}

fn is_usable(content: &str, named: &Map<String, Value>) -> bool {
    let entry = Value::Object(named.clone());
    match content {
        "cluster" => serde_json::from_value::<kube::config::NamedCluster>(entry).is_ok(),
        "user" => serde_json::from_value::<kube::config::NamedAuthInfo>(entry).is_ok(),
        _ => serde_json::from_value::<kube::config::NamedContext>(entry).is_ok(),
    }
}

#[cfg(test)]
mod tests {
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
    fn an_entry_that_does_not_parse_harms_no_other() {
        let config = parsed(
            "contexts: [{name: half, context: {user: x}}, {name: one, context: {cluster: c, user: u}}, {context: {cluster: c}}]\n\
             clusters: [{name: odd, cluster: {server: 7}}, {name: none}, {name: c, cluster: {server: 'https://a'}}]\n\
             users: [{name: u, user: {token: t}}, {name: broken, user: {exec: 7}}]\n",
        );
        assert!(config.contexts[0].context.is_none() && config.contexts[1].context.is_some());
        assert_eq!(config.contexts.len(), 2);
        assert!(config.clusters[0].cluster.is_none() && config.clusters[2].cluster.is_some());
        assert!(config.auth_infos[0].auth_info.is_some() && config.auth_infos[1].auth_info.is_none());
    }

    #[test]
    fn a_server_without_a_scheme_has_that_of_its_tls_settings() {
        let config = parsed(
            "clusters:\n- {name: a, cluster: {server: 'localhost:6443', insecure-skip-tls-verify: true}}\n\
             - {name: b, cluster: {server: 'localhost:8080'}}\n- {name: c, cluster: {server: '10.0.0.1:6443/k8s/c-1', certificate-authority: ca}}\n",
        );
        let servers: Vec<_> =
            config.clusters.iter().map(|named| named.cluster.as_ref().unwrap().server.clone().unwrap()).collect();
        assert_eq!(servers, ["https://localhost:6443", "http://localhost:8080", "https://10.0.0.1:6443/k8s/c-1"]);
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
    fn files_of_powershell_are_read() {
        let utf16: Vec<u8> = [0xfeff_u16].into_iter().chain("a: 1".encode_utf16()).flat_map(u16::to_le_bytes).collect();
        assert_eq!(text(&utf16).unwrap(), "a: 1");
        assert_eq!(text(b"\xef\xbb\xbfa: 1").unwrap(), "a: 1");
        assert!(text(b"\xff").is_err());
    }
}
