//! Types of a kubeconfig's values. As in client-go, a value of a wrong type makes the whole file invalid, even if the
//! value is not used.

use std::collections::HashSet;

use base64::{
    Engine, alphabet,
    engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value};

use crate::config::file::edit::{self, Step};

/// Base64 as in Go: unused bits in the last character may have any value.
pub(super) const LENIENT: GeneralPurpose =
    GeneralPurpose::new(&alphabet::STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// A type of client-go's `clientcmd/api/v1`.
enum Shape {
    Text,
    Flag,
    /// Base64, possibly with line ends.
    Data,
    Any,
    List(&'static Shape),
    /// A list whose entries have distinct names.
    Named(&'static Shape),
    /// Any keys, with values of one type.
    Map(&'static Shape),
    /// Known keys, with a type each. Other keys are ignored.
    Keys(&'static [(&'static str, Shape)]),
}
use Shape::{Any, Data, Flag, Keys, List, Named, Text};

const EXTENSIONS: Shape = Named(&Keys(&[("name", Text), ("extension", Any)]));

const CLUSTER: Shape = Keys(&[
    ("server", Text),
    ("tls-server-name", Text),
    ("insecure-skip-tls-verify", Flag),
    ("certificate-authority", Text),
    ("certificate-authority-data", Data),
    ("proxy-url", Text),
    ("disable-compression", Flag),
    ("extensions", EXTENSIONS),
]);

const USER: Shape = Keys(&[
    ("client-certificate", Text),
    ("client-certificate-data", Data),
    ("client-key", Text),
    ("client-key-data", Data),
    ("token", Text),
    ("tokenFile", Text),
    ("as", Text),
    ("as-uid", Text),
    ("as-groups", List(&Text)),
    ("as-user-extra", Shape::Map(&List(&Text))),
    ("username", Text),
    ("password", Text),
    ("auth-provider", Keys(&[("name", Text), ("config", Shape::Map(&Text))])),
    (
        "exec",
        Keys(&[
            ("command", Text),
            ("args", List(&Text)),
            ("env", List(&Keys(&[("name", Text), ("value", Text)]))),
            ("apiVersion", Text),
            ("installHint", Text),
            ("provideClusterInfo", Flag),
            ("interactiveMode", Text),
        ]),
    ),
    ("extensions", EXTENSIONS),
]);

const CONTEXT: Shape = Keys(&[("cluster", Text), ("user", Text), ("namespace", Text), ("extensions", EXTENSIONS)]);

const FILE: Shape = Keys(&[
    ("kind", Text),
    ("apiVersion", Text),
    ("preferences", Keys(&[("colors", Flag), ("extensions", EXTENSIONS)])),
    ("clusters", Named(&Keys(&[("name", Text), ("cluster", CLUSTER)]))),
    ("users", Named(&Keys(&[("name", Text), ("user", USER)]))),
    ("contexts", Named(&Keys(&[("name", Text), ("context", CONTEXT)]))),
    ("current-context", Text),
    ("extensions", EXTENSIONS),
]);

/// Checks the types of a file. Removes nulls and unknown keys, and replaces a null in a list by an empty value, as in Go.
/// `text`: the file, to find the line of an error.
///
/// # Errors
/// Fails if a value has a wrong type. The error names its entry and line, but not the value, which may be a secret.
pub(super) fn give(document: &mut Value, text: &str) -> Result<(), String> {
    let mut path = Vec::new();
    let Err(wrong) = FILE.give(document, &mut path) else { return Ok(()) };
    let steps: Vec<Step<'_>> = path.iter().map(Place::step).collect();
    let line = edit::line(text, &steps).map_or_else(String::new, |line| format!(" (line {line})"));
    Err(format!("{} {wrong}{line}", called(&path, document)))
}

/// Key, or index in a list.
#[derive(Clone, Debug)]
enum Place {
    Key(String),
    At(usize),
}

impl Place {
    fn step(&self) -> Step<'_> {
        match self {
            Self::Key(key) => Step::Key(key),
            Self::At(index) => Step::At(*index),
        }
    }
}

/// Returns the name of a value for messages: `exec.args[0] of user "ana"`, or its path if its entry has no name.
fn called(path: &[Place], document: &Value) -> String {
    let (path, of) = match path {
        [Place::Key(list), Place::At(index), Place::Key(_), rest @ ..] if !rest.is_empty() => {
            let kind = list.trim_end_matches('s');
            match document[list.as_str()][*index]["name"].as_str() {
                Some(name) => (rest, format!(" of {kind} {name:?}")),
                None => (path, String::new()),
            }
        }
        path => (path, String::new()),
    };
    let mut text = String::new();
    for place in path {
        match place {
            Place::Key(key) if text.is_empty() => text.push_str(key),
            Place::Key(key) => text.push_str(&format!(".{key}")),
            Place::At(index) => text.push_str(&format!("[{index}]")),
        }
    }
    if text.is_empty() { "the file".to_owned() } else { text + &of }
}

impl Shape {
    /// Checks a value. After an error, `path` is its position.
    fn give(&self, value: &mut Value, path: &mut Vec<Place>) -> Result<(), String> {
        match (self, &mut *value) {
            (_, Value::Null) => *value = self.empty(),
            (Any, _) | (Text, Value::String(_)) | (Flag, Value::Bool(_)) => {}
            (Data, Value::String(text)) => {
                text.retain(|char| char != '\r' && char != '\n');
                LENIENT.decode(text).map_err(|_| "is not valid base64".to_owned())?;
            }
            (List(shape) | Named(shape), Value::Array(list)) => {
                for (index, value) in list.iter_mut().enumerate() {
                    path.push(Place::At(index));
                    shape.give(value, path)?;
                    path.pop();
                }
                if let (Named(_), Some(name)) = (self, twice(list)) {
                    return Err(format!("has two entries called {name:?}: rename or remove one of them"));
                }
            }
            (Shape::Map(shape), Value::Object(map)) => {
                for (key, value) in map.iter_mut() {
                    path.push(Place::Key(key.clone()));
                    shape.give(value, path)?;
                    path.pop();
                }
            }
            (Keys(keys), Value::Object(map)) => {
                map.retain(|key, value| !value.is_null() && keys.iter().any(|(known, _)| known == key));
                for (key, shape) in *keys {
                    let Some(value) = map.get_mut(*key) else { continue };
                    path.push(Place::Key((*key).to_owned()));
                    shape.give(value, path)?;
                    path.pop();
                }
            }
            (_, found) => return Err(self.refuse(found)),
        }
        Ok(())
    }

    /// Returns Go's zero value.
    fn empty(&self) -> Value {
        match self {
            Text | Data => Value::String(String::new()),
            Flag => Value::Bool(false),
            Any => Value::Null,
            List(_) | Named(_) => Value::Array(Vec::new()),
            Shape::Map(_) | Keys(_) => Value::Object(Map::new()),
        }
    }

    fn refuse(&self, found: &Value) -> String {
        let wanted = match self {
            Text | Data => "text",
            Flag => "true or false",
            List(_) | Named(_) => "a list",
            Any | Shape::Map(_) | Keys(_) => "keys and values",
        };
        let is = match found {
            Value::Number(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::String(_) => "text",
            Value::Array(_) => "a list",
            Value::Null | Value::Object(_) => "keys and values",
        };
        let advice = match (self, found) {
            (Text | Data, Value::Number(_) | Value::Bool(_)) => ": put it in quotes",
            (Flag, Value::String(text)) if matches!(text.as_str(), "true" | "false") => ": remove the quotes",
            _ => "",
        };
        format!("is {is}, and has to be {wanted}{advice}")
    }
}

/// Returns the first name that two entries share. Null counts as the empty name.
fn twice(list: &[Value]) -> Option<&str> {
    let mut names = HashSet::new();
    list.iter().map(|named| named["name"].as_str().unwrap_or_default()).find(|name| !names.insert(*name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::foreign;

    fn given(text: &str) -> Result<Value, String> {
        let mut document = foreign(text).unwrap();
        give(&mut document, text).map(|()| document)
    }

    #[test]
    fn a_value_of_another_type_is_named_with_its_entry_and_line() {
        for (text, wanted) in [
            ("text", "the file is text, and has to be keys and values (line 1)"),
            ("\nclusters: {}", "clusters is keys and values, and has to be a list (line 2)"),
            ("current-context: 7", "current-context is a number, and has to be text: put it in quotes (line 1)"),
            (
                "clusters:\n- name: c\n  cluster:\n    insecure-skip-tls-verify: \"true\"\n",
                "insecure-skip-tls-verify of cluster \"c\" is text, and has to be true or false: remove the quotes (line 4)",
            ),
            (
                "users:\n- null\n- name: u\n  user:\n    exec:\n      args: [a,\n        yes]\n",
                "exec.args[1] of user \"u\" is true or false, and has to be text: put it in quotes (line 7)",
            ),
            ("users: [{name: u, user: x}]", "users[0].user is text, and has to be keys and values (line 1)"),
            (
                "users: [{user: {token: 5}}]",
                "users[0].user.token is a number, and has to be text: put it in quotes (line 1)",
            ),
            (
                "users: [{name: u, user: {as-groups: x}}]",
                "as-groups of user \"u\" is text, and has to be a list (line 1)",
            ),
            (
                "users: [{name: u, user: {client-key-data: 's%crt'}}]",
                "client-key-data of user \"u\" is not valid base64 (line 1)",
            ),
            (
                "contexts: [{name: c}, {name: d},\n  {name: c}]",
                "contexts has two entries called \"c\": rename or remove one of them (line 1)",
            ),
            ("users: [null, {user: {}}]", "users has two entries called \"\": rename or remove one of them (line 1)"),
            ("preferences: {colors: a}", "preferences.colors is text, and has to be true or false (line 1)"),
            // With a duplicate key the line is unknown.
            ("kind: Config\nkind: 5", "kind is a number, and has to be text: put it in quotes"),
        ] {
            assert_eq!(given(text).unwrap_err(), wanted, "{text}");
        }
    }

    #[test]
    fn nulls_and_unknown_keys_are_dropped() {
        let text = "users: [null, {name: u, user: {as: null, as-groups: [null], as-user-extra: {a: null}, Token: 5}}]\nmore: 1\n";
        let wanted =
            serde_json::json!({"users": [{}, {"name": "u", "user": {"as-groups": [""], "as-user-extra": {"a": []}}}]});
        assert_eq!(given(text).unwrap(), wanted);
    }
}
