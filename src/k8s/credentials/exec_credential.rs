//! Messages between adit and a credential plugin: `ExecCredential` of `client.authentication.k8s.io`.
//!
//! | | where | form |
//! |---|---|---|
//! | to the plugin | the variable `KUBERNETES_EXEC_INFO` | JSON: `spec.interactive`, `spec.cluster` where the user has `provideClusterInfo` |
//! | from the plugin | stdout | JSON or YAML: `status.token`, `status.clientCertificateData` with `status.clientKeyData`, `status.expirationTimestamp` |
//!
//! Validation follows client-go (`plugin/pkg/client/auth/exec`).

use std::time::SystemTime;

use jiff::{Timestamp, fmt::temporal::Pieces};
use serde_json::{Value, json};

use crate::config::file::foreign;

/// Environment variable for the plugin.
pub const VARIABLE: &str = "KUBERNETES_EXEC_INFO";

const GROUP: &str = "client.authentication.k8s.io/";

/// Protocol versions that client-go supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V1Beta1,
}

impl Version {
    /// Parses the `apiVersion` of a user's plugin.
    ///
    /// # Errors
    /// Fails if client-go does not support it.
    pub fn of(api_version: &str) -> Result<Self, String> {
        let known = [Self::V1, Self::V1Beta1].into_iter().find(|version| version.name() == api_version);
        known.ok_or_else(|| {
            format!(
                "its exec has the apiVersion {api_version:?}, which kubectl does not know: write {}",
                Self::V1.name()
            )
        })
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "client.authentication.k8s.io/v1",
            Self::V1Beta1 => "client.authentication.k8s.io/v1beta1",
        }
    }
}

/// Returns the value of [`VARIABLE`]. adit gives plugins no terminal. `cluster`: the value of `spec.cluster`.
pub fn info(version: Version, cluster: Option<&Value>) -> String {
    let mut spec = json!({"interactive": false});
    if let Some(cluster) = cluster {
        spec["cluster"] = cluster.clone();
    }
    json!({"kind": "ExecCredential", "apiVersion": version.name(), "spec": spec}).to_string()
}

/// Credential that a plugin has issued.
#[derive(Default, PartialEq, Eq)]
pub struct Issued {
    pub token: Option<String>,
    /// Certificates and key, in PEM.
    pub certificate: Option<(String, String)>,
    /// `None`: valid until it is refused.
    pub expires: Option<SystemTime>,
}

/// Parses the output of a plugin.
///
/// # Errors
/// Returns the problem as text that follows the plugin's name. The text contains nothing of the output.
pub fn read(stdout: &[u8], version: Version) -> Result<Issued, String> {
    let no_credential = || "printed no ExecCredential to stdout".to_owned();
    let text = &*String::from_utf8_lossy(stdout);
    // As in client-go, a brace begins JSON, which may contain tabs and has nothing behind it.
    let value = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text).map_err(|_| no_credential())?,
        false => foreign(text).map_err(|_| no_credential())?,
    };
    // client-go accepts an answer without the kind.
    if !value.is_object() || value.get("kind").is_some_and(|kind| kind != "ExecCredential") {
        return Err(no_credential());
    }
    let said = value["apiVersion"].as_str().unwrap_or_default();
    if said != version.name() {
        let said = said.strip_prefix(GROUP).unwrap_or("another version");
        return Err(format!("answered in {said}, and the kubeconfig asks for {}", version.name()));
    }
    let status = match &value["status"] {
        Value::Object(status) => status,
        Value::Null => return Err("printed an ExecCredential without a status".to_owned()),
        _ => return Err(no_credential()),
    };
    let field = |name: &str| match status.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(_) => Err(format!("printed a {name} that is not a string")),
    };
    let (token, chain, key) = (field("token")?, field("clientCertificateData")?, field("clientKeyData")?);
    let certificate = match (chain, key) {
        (Some(chain), Some(key)) => Some((chain, key)),
        (None, None) => None,
        _ => return Err("printed only one of clientCertificateData and clientKeyData".to_owned()),
    };
    if token.is_none() && certificate.is_none() {
        return Err("printed neither a token nor a certificate".to_owned());
    }
    let expires = match status.get("expirationTimestamp") {
        None | Some(Value::Null) => None,
        Some(time) => {
            let text = time.as_str().filter(|text| is_rfc3339(text)).unwrap_or_default();
            match text.parse::<Timestamp>() {
                Ok(time) => Some(time.into()),
                // The usual "never", 9999-12-31, is a day after the last one that jiff supports.
                Err(_) if is_of_last_year(text) => None,
                Err(_) => {
                    return Err(
                        "printed an expirationTimestamp that is not a time such as 2026-01-31T12:00:00Z".to_owned()
                    );
                }
            }
        }
    };
    Ok(Issued { token, certificate, expires })
}

/// Returns whether Go reads the text as a time. jiff reads more: a space for the `T`, no seconds, the name of a zone.
fn is_rfc3339(text: &str) -> bool {
    let has_form = |text: &str, form: &str| {
        text.len() == form.len()
            && text.bytes().zip(form.bytes()).all(|(byte, of_form)| match of_form {
                b'0' => byte.is_ascii_digit(),
                other => byte == other,
            })
    };
    let Some((seconds, rest)) = text.split_at_checked("0000-00-00T00:00:00".len()) else { return false };
    let zone = match rest.strip_prefix(['.', ',']) {
        Some(rest) => rest.trim_start_matches(|char: char| char.is_ascii_digit()),
        None => rest,
    };
    let is_zone = zone == "Z" || has_form(zone, "+00:00") || has_form(zone, "-00:00");
    has_form(seconds, "0000-00-00T00:00:00") && !seconds.ends_with(":60") && is_zone
}

fn is_of_last_year(text: &str) -> bool {
    let pieces = Pieces::parse(text).ok();
    pieces.is_some_and(|it| it.date().year() == 9999 && it.time().is_some() && it.offset().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: Value) -> String {
        json!({"kind": "ExecCredential", "apiVersion": Version::V1.name(), "status": status}).to_string()
    }

    fn problem(text: &str) -> String {
        read(text.as_bytes(), Version::V1).err().expect(text)
    }

    #[test]
    fn tokens_and_certificates_are_read_with_their_end() {
        let issued = read(answer(json!({"token": "t"})).as_bytes(), Version::V1).unwrap();
        assert!(issued == Issued { token: Some("t".into()), ..Issued::default() });
        let status = json!({"token": "t", "clientCertificateData": "c", "clientKeyData": "k",
                            "expirationTimestamp": "1970-01-01T00:01:00.5+00:00"});
        let issued = read(answer(status).as_bytes(), Version::V1).unwrap();
        assert_eq!(issued.certificate, Some(("c".into(), "k".into())));
        let passed = issued.expires.unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(passed.as_millis(), 60_500);
        let yaml = "kind: ExecCredential\napiVersion: client.authentication.k8s.io/v1beta1\nstatus: {token: t}\n";
        assert_eq!(read(yaml.as_bytes(), Version::V1Beta1).unwrap().token.as_deref(), Some("t"));
        let tabs = answer(json!({"token": "t"})).replace("\"kind\"", "\n\t\"kind\"");
        assert!(read(tabs.as_bytes(), Version::V1).is_ok());
    }

    #[test]
    fn what_client_go_refuses_is_refused_in_words_without_the_text() {
        for (text, wanted) in [
            (String::new(), "printed no ExecCredential"),
            ("secret".to_owned(), "printed no ExecCredential"),
            ("{\"kind\":".to_owned(), "printed no ExecCredential"),
            (format!("{} {{}}", answer(json!({"token": "t"}))), "printed no ExecCredential"),
            (answer(json!({"token": "t"})).replace("\"kind\"", "kind"), "printed no ExecCredential"),
            (answer(Value::Null), "printed an ExecCredential without a status"),
            (answer(json!({})), "printed neither a token nor a certificate"),
            (answer(json!({"token": ""})), "printed neither a token nor a certificate"),
            (answer(json!({"token": 7})), "printed a token that is not a string"),
            (answer(json!({"clientKeyData": "k"})), "printed only one of"),
            (answer(json!({"token": "t", "clientCertificateData": "k"})), "printed only one of"),
            (answer(json!({"token": "t", "expirationTimestamp": "tomorrow"})), "printed an expirationTimestamp"),
            (answer(json!({"token": "t", "expirationTimestamp": "9999-12-31"})), "printed an expirationTimestamp"),
            (answer(json!({"token": "t"})).replace("/v1", "/v1beta1"), "answered in v1beta1, and the kubeconfig asks"),
            (answer(json!({"token": "t"})).replace("ExecCredential", "Status"), "printed no ExecCredential"),
        ] {
            assert!(problem(&text).starts_with(wanted), "{text}: {}", problem(&text));
        }
    }

    #[test]
    fn a_time_has_the_form_that_go_reads() {
        let read = |time: &str| {
            let status = json!({"token": "t", "expirationTimestamp": time});
            read(answer(status).as_bytes(), Version::V1).is_ok()
        };
        for time in ["2030-01-01T00:00:00Z", "2030-01-01T00:00:00,5+02:00", "2030-01-01T00:00:00.123456789-11:30"] {
            assert!(read(time), "{time}");
        }
        for time in [
            "2030-01-01 00:00:00Z",
            "2030-01-01t00:00:00z",
            "2030-01-01T00:00Z",
            "2030-01-01T00:00:60Z",
            "2030-01-01T00:00:00",
            "2030-01-01T00:00:00+0000",
            "2030-01-01T00:00:00+02:00[Europe/Berlin]",
            "2030-13-01T00:00:00Z",
            "é",
            "",
        ] {
            assert!(!read(time), "{time}");
        }
    }

    #[test]
    fn the_last_day_of_all_means_never() {
        for time in ["9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999+00:00"] {
            let status = json!({"token": "t", "expirationTimestamp": time});
            assert_eq!(read(answer(status).as_bytes(), Version::V1).unwrap().expires, None, "{time}");
        }
    }

    #[test]
    fn the_plugin_learns_the_version_and_the_cluster() {
        let plain = r#"{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential","spec":{"interactive":false}}"#;
        assert_eq!(info(Version::V1Beta1, None), plain);
        assert!(
            info(Version::V1, Some(&json!({"server": "https://a"}))).contains(r#""cluster":{"server":"https://a"}"#)
        );
        assert_eq!(Version::of("client.authentication.k8s.io/v1"), Ok(Version::V1));
        assert!(Version::of("client.authentication.k8s.io/v1alpha1").unwrap_err().contains("v1alpha1\", which"));
    }
}
