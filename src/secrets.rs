//! Which names say that a value is a secret, and what is shown instead.

/// If a name contains one of these, its value is a secret. Without `-` and `_`, in lower case.
const WORDS: [&str; 17] = [
    "authorization",
    "cookie",
    "token",
    "secret",
    "passw",
    "passphrase",
    "pgpass",
    "pwd",
    "apikey",
    "accesskey",
    "accountkey",
    "encryptionkey",
    "masterkey",
    "privatekey",
    "sharedkey",
    "signingkey",
    "keydata",
];

/// Names without such a word: signatures in URLs of Azure, AWS and Google Cloud.
const NAMES: [&str; 3] = ["sig", "xamzsignature", "xgoogsignature"];

/// Names with such a word whose values are folders.
const PLACES: [&str; 2] = ["pwd", "oldpwd"];

/// Returns whether the value of a header, parameter, variable, option or key of this name is a secret.
///
/// Values of `password_file`, `--token-path` and the like are places, not secrets.
pub fn is_secret_name(name: &str) -> bool {
    let name: String =
        name.chars().filter(|char| !matches!(char, '-' | '_')).map(|char| char.to_ascii_lowercase()).collect();
    let is_place = PLACES.contains(&name.as_str()) || name.ends_with("file") || name.ends_with("path");
    !is_place && (NAMES.contains(&name.as_str()) || WORDS.iter().any(|word| name.contains(word)))
}

/// Returns the text that replaces a secret of this many bytes.
pub fn hidden(length: usize) -> String {
    format!("(hidden, {length} bytes)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_by_their_names() {
        for name in [
            "Authorization",
            "Proxy-Authorization",
            "COOKIE",
            "set-cookie",
            "X-Api-Key",
            "api-key",
            "apikey",
            "api_key",
            "x-csrf-token",
            "My-Secret",
            "userPassword",
            "--passwd",
            "MYSQL_PWD",
            "AWS_SECRET_ACCESS_KEY",
            "client-key-data",
            "X-Amz-Signature",
            "sig",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in
            ["accept", "PWD", "secret_file", "tokenFile", "--token-file", "client_cert", "sec-websocket-key", "design"]
        {
            assert!(!is_secret_name(name), "{name}");
        }
    }
}
