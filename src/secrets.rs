//! Which names say that a value is a secret, and what is shown instead.

use std::ops::Range;

/// If a name contains one of these, its value is a secret. Without `-` and `_`, in lower case.
const WORDS: [&str; 19] = [
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
    "subscriptionkey",
    "functionskey",
];

/// Names without such a word: signatures in URLs of Azure, AWS and Google Cloud.
const NAMES: [&str; 3] = ["sig", "xamzsignature", "xgoogsignature"];

/// Environment variables with such a word whose values are folders. In other case, `pwd` is a password.
const FOLDERS: [&str; 2] = ["PWD", "OLDPWD"];

/// Characters before a name inside an argument of a command: `--header=Authorization: abc`, `a=b;Password=c`.
const BEFORE_NAMES: &[char] = &['=', ':', ';', '&', '?', ',', ' ', '"', '\''];

/// Returns whether the value of a header, parameter, variable, option or key of this name is a secret.
///
/// Values of `password_file`, `--token-path` and the like are places, not secrets.
pub fn is_secret_name(name: &str) -> bool {
    if FOLDERS.contains(&name) {
        return false;
    }
    let name: String =
        name.chars().filter(|char| !matches!(char, '-' | '_')).map(|char| char.to_ascii_lowercase()).collect();
    let is_place = name.ends_with("file") || name.ends_with("path");
    !is_place && (NAMES.contains(&name.as_str()) || WORDS.iter().any(|word| name.contains(word)))
}

/// Returns the place of the secret in each argument of a command. `None`: the argument has none.
///
/// The secret is the argument after `--password`, the rest of `--password=...`, `PGPASSWORD=...` or `Authorization: ...`, or the
/// password of a URL.
pub fn in_arguments<'a>(arguments: impl IntoIterator<Item = &'a str>) -> impl Iterator<Item = Option<Range<usize>>> {
    let mut is_next_secret = false;
    arguments.into_iter().map(move |argument| {
        if std::mem::take(&mut is_next_secret) {
            return Some(0..argument.len());
        }
        is_next_secret = argument.starts_with('-') && !argument.contains(['=', ':']) && is_secret_option(argument);
        match (password(argument), named(argument)) {
            (Some(password), Some(named)) => Some(password.start.min(named.start)..named.end),
            (password, named) => named.or(password),
        }
    })
}

/// Returns whether the value of an option or key of this name is a secret. There may be one for a credential, too.
pub fn is_secret_option(name: &str) -> bool {
    is_secret_name(name) || name.to_ascii_lowercase().ends_with("credential")
}

/// Returns the place of the value after the first name of a secret, up to the end.
fn named(argument: &str) -> Option<Range<usize>> {
    let mut name = 0;
    argument.match_indices(BEFORE_NAMES).find_map(|(at, separator)| {
        let start = std::mem::replace(&mut name, at + separator.len());
        let before = &argument[start..at];
        let value = argument[at + 1..].trim_start();
        // `token-service:8080` and `registry/secrets:latest` are no secrets.
        let is_named = match separator {
            "=" => is_secret_option(before),
            ":" => is_secret_option(before) && !before.contains('/') && value.parse::<u16>().is_err(),
            _ => false,
        };
        is_named.then_some(argument.len() - value.len()..argument.len())
    })
}

/// Returns the place of the password in a URL.
fn password(argument: &str) -> Option<Range<usize>> {
    let start = argument.find("://")? + "://".len();
    let rest = &argument[start..];
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let (user, _) = authority.rsplit_once('@')?;
    let (name, _) = user.split_once(':')?;
    Some(start + name.len() + 1..start + user.len())
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
            "pwd",
            "Pwd",
            "--pwd",
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

    #[test]
    fn secrets_in_arguments_of_commands_are_found() {
        for (arguments, wanted) in [
            ("env PGPASSWORD=*** x {port}", "hunter2"),
            ("websocat -H Authorization:_***", "Bearer_abc"),
            ("websocat --header=Authorization:_***", "Bearer_abc"),
            ("curl -H X-Api-Key:***", "abc"),
            ("tool http://me:***@proxy:3128", "pw"),
            ("tool --proxy=http://me:***@proxy:3128/", "p:w@"),
            ("tool http://me:***", "pw@h/?token=x"),
            ("tool --token *** -v", "t0p"),
            ("tool --pwd *** PWD=/home/me", "hunter2"),
            ("tool Server=db;Password=***", "hunter2;Encrypt=yes"),
            ("sh -c exec_env_TOKEN=***", "abc_tool"),
            ("tool --credential *** --token-file=/a token-service:8080 registry/secrets:latest", "abc"),
        ] {
            // `_`: a space inside an argument.
            let arguments = |secret: &str| -> Vec<String> {
                arguments.split(' ').map(|word| word.replace("***", secret).replace('_', " ")).collect()
            };
            let (plain, hidden) = (arguments(wanted), arguments("***"));
            let found = in_arguments(plain.iter().map(String::as_str));
            let shown = found.zip(&plain).map(|(secret, argument)| match secret.filter(|secret| !secret.is_empty()) {
                Some(secret) => format!("{}***{}", &argument[..secret.start], &argument[secret.end..]),
                None => argument.clone(),
            });
            assert_eq!(shown.collect::<Vec<_>>(), hidden);
        }
    }
}
