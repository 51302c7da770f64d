//! Checks that client-go makes on a cluster and a user before the first request.

use kube::config::{AuthInfo, Cluster};

use super::plugin;

/// # Errors
/// Fails if settings contradict each other.
pub(super) fn cluster(cluster: &Cluster) -> Result<(), String> {
    let has_bundle = cluster.certificate_authority.is_some() || cluster.certificate_authority_data.is_some();
    if cluster.certificate_authority.is_some() && cluster.certificate_authority_data.is_some() {
        return Err(both("certificate-authority"));
    }
    if has_bundle && cluster.insecure_skip_tls_verify == Some(true) {
        return Err("it has a CA bundle and insecure-skip-tls-verify: remove one of them".to_owned());
    }
    Ok(())
}

/// # Errors
/// Fails if settings contradict each other or are incomplete.
pub(super) fn user(user: &AuthInfo) -> Result<(), String> {
    let has_certificate = user.client_certificate.is_some() || user.client_certificate_data.is_some();
    if user.client_certificate.is_some() && user.client_certificate_data.is_some() {
        return Err(both("client-certificate"));
    }
    // A key without a certificate is ignored.
    if has_certificate && user.client_key.is_some() && user.client_key_data.is_some() {
        return Err(both("client-key"));
    }
    if has_certificate && user.client_key.is_none() && user.client_key_data.is_none() {
        return Err("it has a client certificate and no client-key or client-key-data: add one".to_owned());
    }
    let has_password = user.username.is_some() || user.password.is_some();
    if has_password && (user.token.is_some() || user.token_file.is_some()) {
        return Err("it has a token and a username or password: remove one of them".to_owned());
    }
    if let Some(exec) = &user.exec {
        if user.auth_provider.is_some() {
            return Err("it has an exec and an auth-provider: remove one of them".to_owned());
        }
        plugin::check(exec)?;
    }
    let impersonates = user.impersonate_uid.is_some()
        || user.impersonate_groups.as_ref().is_some_and(|groups| !groups.is_empty())
        || user.impersonate_user_extra.as_ref().is_some_and(|extra| !extra.is_empty());
    if impersonates && user.impersonate.is_none() {
        return Err("it has as-uid, as-groups or as-user-extra and no as: add the user".to_owned());
    }
    Ok(())
}

/// # Errors
/// Fails unless the `auth-provider` is `oidc`, the only one that kubectl still supports.
pub(super) fn auth_provider(name: &str) -> Result<(), String> {
    let instead = match name {
        "oidc" => return Ok(()),
        "gcp" => "sign in with the plugin gke-gcloud-auth-plugin: gcloud container clusters get-credentials CLUSTER",
        "azure" => "sign in with the plugin kubelogin: kubelogin convert-kubeconfig",
        _ => "replace it by an exec",
    };
    Err(format!("its auth-provider is {name:?}, which kubectl does not have (any more): {instead}"))
}

fn both(key: &str) -> String {
    format!("it has {key} and {key}-data: remove one of them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::foreign;

    fn read<T: serde::de::DeserializeOwned>(text: &str) -> T {
        serde_json::from_value(foreign(text).unwrap()).unwrap()
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let clusters = [
            ("{}", ""),
            ("{certificate-authority: a}", ""),
            ("{insecure-skip-tls-verify: true}", ""),
            ("{certificate-authority: a, insecure-skip-tls-verify: false}", ""),
            ("{certificate-authority: a, certificate-authority-data: b}", "it has certificate-authority and"),
            ("{certificate-authority-data: b, insecure-skip-tls-verify: true}", "it has a CA bundle and"),
        ];
        for (text, wanted) in clusters {
            let found = cluster(&read(text));
            assert!(found.clone().err().unwrap_or_default().starts_with(wanted), "{text}: {found:?}");
            assert_eq!(found.is_ok(), wanted.is_empty(), "{text}");
        }
        let users = [
            ("{}", ""),
            ("{token: a, tokenFile: b}", ""),
            ("{client-key: a}", ""),
            ("{client-certificate: a, client-key-data: b}", ""),
            ("{client-certificate: a}", "it has a client certificate and no client-key"),
            ("{client-certificate: a, client-certificate-data: b, client-key: c}", "it has client-certificate and"),
            ("{client-certificate: a, client-key: b, client-key-data: c}", "it has client-key and"),
            ("{token: a, username: b, password: c}", "it has a token and"),
            ("{tokenFile: a, username: b}", "it has a token and"),
            ("{username: b, password: c}", ""),
            ("{exec: {apiVersion: client.authentication.k8s.io/v1, command: a, interactiveMode: Never}}", ""),
            ("{exec: {apiVersion: client.authentication.k8s.io/v1, command: a}}", "its exec has no interactiveMode"),
            ("{exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: a}}", ""),
            ("{exec: {command: a, interactiveMode: Never}}", "its exec has no apiVersion"),
            ("{token: t, exec: {apiVersion: x, interactiveMode: Never}}", "its exec has no command"),
            (
                "{exec: {apiVersion: x, command: a, interactiveMode: Never, env: [{value: b}]}}",
                "its exec has a variable",
            ),
            ("{exec: {apiVersion: x, command: a, interactiveMode: Never, env: [{name: b}]}}", ""),
            (
                "{auth-provider: {name: oidc}, exec: {apiVersion: x, command: a, interactiveMode: Never}}",
                "it has an exec and an auth-provider",
            ),
            ("{as: a, as-groups: [b]}", ""),
            ("{as-groups: []}", ""),
            ("{as-groups: [b]}", "it has as-uid, as-groups"),
        ];
        for (text, wanted) in users {
            let found = user(&read(text));
            assert!(found.clone().err().unwrap_or_default().starts_with(wanted), "{text}: {found:?}");
            assert_eq!(found.is_ok(), wanted.is_empty(), "{text}");
        }
    }
}
