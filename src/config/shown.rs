//! The content of the file with its secrets hidden, for the API and the dashboard.

use serde_json::Value as Json;

use super::file::{Key, Node, Value};
use crate::secrets::{hidden, is_secret_name};

/// Returns the tree of a file with `(hidden, 32 bytes)` instead of each secret.
pub(super) fn shown(node: &Node) -> Json {
    value(node, false)
}

fn value(node: &Node, is_within_secret: bool) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Scalar { text, .. } if is_within_secret => Json::String(hidden(text.len())),
        Value::Scalar { text, quoted: true } => Json::String(without_password(text)),
        Value::Scalar { text, quoted: false } => plain(text),
        Value::List(items) => list(items, is_within_secret),
        Value::Map(pairs) => {
            let pair = |(Key { name, .. }, node): &(Key, Node)| {
                (name.clone(), value(node, is_within_secret || is_secret(name)))
            };
            Json::Object(pairs.iter().map(pair).collect())
        }
    }
}

/// Hides items that are values of secret options: the item after `--password`, or the rest of `--password=...`.
fn list(items: &[Node], is_within_secret: bool) -> Json {
    let mut is_next_secret = false;
    let item = |node: &Node| {
        let hide = is_within_secret || std::mem::take(&mut is_next_secret);
        if let Value::Scalar { text, .. } = &node.value {
            if hide {
                return Json::String(hidden(text.len()));
            }
            if let Some((name, secret)) = text.split_once(['=', ':']).filter(|(name, _)| is_secret(name)) {
                let between = &text[name.len()..=name.len()];
                return Json::String(format!("{name}{between}{}", hidden(secret.len())));
            }
            is_next_secret = text.starts_with('-') && is_secret(text);
        }
        value(node, hide)
    };
    Json::Array(items.iter().map(item).collect())
}

/// Commands may have an option for a credential, too.
fn is_secret(name: &str) -> bool {
    is_secret_name(name) || name.to_ascii_lowercase().ends_with("credential")
}

/// Hides the password in a URL.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    match authority.rsplit_once('@').and_then(|(user, host)| Some((user.split_once(':')?, host))) {
        Some(((user, password), host)) => {
            format!("{scheme}://{user}:{}@{host}{}", hidden(password.len()), &rest[authority.len()..])
        }
        None => text.to_owned(),
    }
}

/// Returns an unquoted scalar as the type that it looks like (YAML 1.2, core schema).
fn plain(text: &str) -> Json {
    match text {
        "null" | "~" | "" => Json::Null,
        "true" => Json::Bool(true),
        "false" => Json::Bool(false),
        text => match text.parse::<i64>() {
            Ok(number) if number.to_string() == text => number.into(),
            _ => Json::String(without_password(text)),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::file;
    use super::*;

    #[test]
    fn secrets_are_hidden_and_nothing_else_is() {
        let text = "
http:
  listen: 127.0.0.1:8989
  k8s:
    routes:
      a.localhost:
        service: web
        port: 80
        headers: {request: {set: {Authorization: Bearer abc, x-api-key: k1, accept: '8'}}}
expose:
  - {to: relay.example.com, secret_file: /home/me/secret, local: 3000}
sni:
  routes:
    db:
      command: {run: [tool, --token, t0p, --password=hunter2, -v, 'http://me:pw@host/x'], env: {API_TOKEN: xyz, LANG: C}}
";
        let shown = shown(&file::parse(text).unwrap());
        assert_eq!(
            shown["http"]["k8s"]["routes"]["a.localhost"],
            json!({
                "service": "web", "port": 80,
                "headers": {"request": {"set": {
                    "Authorization": "(hidden, 10 bytes)", "x-api-key": "(hidden, 2 bytes)", "accept": "8",
                }}},
            })
        );
        assert_eq!(shown["expose"][0]["secret_file"], "/home/me/secret");
        assert_eq!(
            shown["sni"]["routes"]["db"]["command"],
            json!({
                "run": ["tool", "--token", "(hidden, 3 bytes)", "--password=(hidden, 7 bytes)", "-v",
                    "http://me:(hidden, 2 bytes)@host/x"],
                "env": {"API_TOKEN": "(hidden, 3 bytes)", "LANG": "C"},
            })
        );
    }
}
