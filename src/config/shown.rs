//! The content of the file with its secrets hidden, for the API and the dashboard.

use std::ops::Range;

use serde_json::Value as Json;

use super::file::{Key, Node, Value};
use crate::secrets::{hidden, in_arguments, is_secret_option};

/// Returns the tree of a file with `(hidden, 32 bytes)` instead of each secret.
pub(super) fn shown(node: &Node) -> Json {
    value(node, false)
}

fn value(node: &Node, is_within_secret: bool) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Scalar { text, .. } if is_within_secret => Json::String(hidden(text.len())),
        Value::Scalar { text, quoted: true } => Json::String(without_secret(text)),
        Value::Scalar { text, quoted: false } => plain(text),
        Value::List(items) => list(items, is_within_secret),
        Value::Map(pairs) => {
            let pair = |(Key { name, .. }, node): &(Key, Node)| {
                (name.clone(), value(node, is_within_secret || is_secret_option(name)))
            };
            Json::Object(pairs.iter().map(pair).collect())
        }
    }
}

/// Hides the secrets of a list. It may be a command.
fn list(items: &[Node], is_within_secret: bool) -> Json {
    let text = |node: &Node| match &node.value {
        Value::Scalar { text, .. } if !is_within_secret => text.clone(),
        _ => String::new(),
    };
    let texts: Vec<String> = items.iter().map(text).collect();
    let item = |(node, (text, secret)): (&Node, (&String, Option<Range<usize>>))| match secret {
        Some(secret) if !secret.is_empty() => Json::String(without(text, secret)),
        _ => value(node, is_within_secret),
    };
    let secrets = in_arguments(texts.iter().map(String::as_str));
    Json::Array(items.iter().zip(texts.iter().zip(secrets)).map(item).collect())
}

fn without(text: &str, secret: Range<usize>) -> String {
    format!("{}{}{}", &text[..secret.start], hidden(secret.len()), &text[secret.end..])
}

/// Hides the secret of a single value, for example the password in a URL.
fn without_secret(text: &str) -> String {
    match in_arguments([text]).next().flatten() {
        Some(secret) if !secret.is_empty() => without(text, secret),
        _ => text.to_owned(),
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
            _ => Json::String(without_secret(text)),
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
