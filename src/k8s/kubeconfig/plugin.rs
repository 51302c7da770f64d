//! Credential plugin of a user: validated as in client-go, and found on this machine.

use std::path::PathBuf;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Uri;
use kube::config::{Cluster, ExecConfig, ExecInteractiveMode};
use serde_json::{Map, Value};

use super::kuberc::Policy;
use crate::k8s::{
    ClusterError,
    credentials::{exec::Plugin, exec_credential::Version},
    exec_path::ExecPath,
};

/// Extension of a cluster entry that plugins receive.
const EXTENSION: &str = "client.authentication.k8s.io/exec";

/// Error for a user whose content was dropped because of its plugin's `interactiveMode`.
pub(super) const NO_SUCH_MODE: &str =
    "its exec has an interactiveMode that is none: write Never, IfAvailable or Always";

/// # Errors
/// Fails on settings that client-go rejects, even if it never runs the plugin.
pub(super) fn check(exec: &ExecConfig) -> Result<(), String> {
    let is_empty = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
    if is_empty(&exec.command) {
        return Err("its exec has no command: add one".to_owned());
    }
    if is_empty(&exec.api_version) {
        return Err(format!("its exec has no apiVersion: add apiVersion: {}", Version::V1.name()));
    }
    variables(exec)?;
    // Only v1beta1 has a default.
    if exec.interactive_mode.is_none() && exec.api_version.as_deref() != Some(Version::V1Beta1.name()) {
        return Err("its exec has no interactiveMode: add interactiveMode: IfAvailable".to_owned());
    }
    Ok(())
}

/// Returns the plugin. Searches the folders of `exec_path` if the command is a bare name.
///
/// # Errors
/// Fails if the version is unknown, or if the plugin needs a terminal or does not exist.
pub(super) fn find(
    exec: &ExecConfig,
    cluster: Option<Value>,
    exec_path: &ExecPath,
    of_user: &dyn Fn(String) -> ClusterError,
) -> Result<Plugin, ClusterError> {
    check(exec).map_err(of_user)?;
    let command = exec.command.clone().unwrap_or_default();
    let version = Version::of(exec.api_version.as_deref().unwrap_or_default()).map_err(of_user)?;
    let variables = variables(exec).map_err(of_user)?;
    if exec.interactive_mode == Some(ExecInteractiveMode::Always) {
        return Err(of_user(format!(
            "'{command}' requires a terminal (interactiveMode: Always), and adit has none to give: write interactiveMode: \
             IfAvailable, and sign in with the plugin by hand where it asks"
        )));
    }
    // A name with a slash is a path. Relative paths were resolved when their file was read.
    let found = match command.contains('/') {
        true => Some(PathBuf::from(&command)).filter(|file| file.exists()),
        false => exec_path.find(&command),
    };
    let Some(program) = found else {
        let missing = match command.contains('/') {
            true => format!("'{command}' does not exist"),
            false => format!("'{command}' was not found on PATH"),
        };
        return Err(not_found(of_user(String::new()), missing, exec));
    };
    let is_allowed = Policy::of_user().map_err(of_user)?.allows(&program, |name| exec_path.find(name));
    if !is_allowed {
        return Err(of_user(format!(
            "'{command}' may not run: credentialPluginPolicy of the kuberc does not allow it"
        )));
    }
    let mut all = vec![("PATH".to_owned(), exec_path.to_env().to_string_lossy().into_owned())];
    // If a variable is set twice, the last value wins.
    all.extend(variables);
    let name = command.rsplit('/').next().unwrap_or(&command).to_owned();
    let arguments = exec.args.clone().unwrap_or_default();
    Ok(Plugin { name, program, arguments, variables: all, version, cluster })
}

/// Returns the error for a missing plugin, with the context of `error`.
fn not_found(error: ClusterError, reason: String, exec: &ExecConfig) -> ClusterError {
    let ClusterError::Credentials { context, .. } = error else { return error };
    let advice = "install it, or add its folder to exec_path".to_owned();
    let hint = match exec.install_hint.as_deref().map(str::trim).filter(|hint| !hint.is_empty()) {
        Some(hint) => format!("{advice}\n{hint}"),
        None => advice,
    };
    ClusterError::Credentials { context, reason, hint: Some(hint) }
}

fn variables(exec: &ExecConfig) -> Result<Vec<(String, String)>, String> {
    let one = |variable: &std::collections::HashMap<String, String>| {
        let name = variable.get("name").filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| "its exec has a variable without a name: add one".to_owned())?;
        if name.contains(['=', '\0']) {
            return Err(format!("its exec has a variable called {name:?}: a name has no '='"));
        }
        Ok((name.clone(), variable.get("value").cloned().unwrap_or_default()))
    };
    exec.env.iter().flatten().map(one).collect()
}

/// Returns the cluster info for a plugin with `provideClusterInfo`, with the keys of `spec.cluster` in `ExecCredential`.
/// `proxy`: the proxy of requests, from any source.
pub(super) fn cluster_info(cluster: &Cluster, bundle: Option<&[u8]>, proxy: Option<&Uri>) -> Value {
    let mut info = Map::new();
    info.insert("server".to_owned(), cluster.server.clone().unwrap_or_default().into());
    if let Some(name) = &cluster.tls_server_name {
        info.insert("tls-server-name".to_owned(), name.clone().into());
    }
    for (key, is_set) in [
        ("insecure-skip-tls-verify", cluster.insecure_skip_tls_verify),
        ("disable-compression", cluster.disable_compression),
    ] {
        if is_set == Some(true) {
            info.insert(key.to_owned(), true.into());
        }
    }
    if let Some(bundle) = bundle {
        info.insert("certificate-authority-data".to_owned(), STANDARD.encode(bundle).into());
    }
    if let Some(proxy) = proxy {
        info.insert("proxy-url".to_owned(), proxy.to_string().trim_end_matches('/').into());
    }
    let extensions = cluster.extensions.iter().flatten();
    if let Some(config) = extensions.clone().find(|extension| extension.name == EXTENSION) {
        info.insert("config".to_owned(), config.extension.clone());
    }
    Value::Object(info)
}
