//! Sets values in a YAML file that adit does not own, and keeps everything else as written: comments, order, quotes.

use serde_json::Value as Json;

use super::{Node, Value, foreign, parse};

/// A step into a document.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// The value of this key.
    Key(&'a str),
    /// The entry of a list with this `name`.
    Named(&'a str),
    /// An entry of a list, counted from 0.
    At(usize),
}

/// Returns the line of a value, counted from 1. None: there is no such value, or a key is there twice.
pub fn line(text: &str, path: &[Step<'_>]) -> Option<usize> {
    Some(find(&parse(text).ok()?, path)?.place.line)
}

/// Returns the text with these values set in the map at `path`. The map must have at least one key.
///
/// `None`: there is no such map, or this form of YAML cannot be edited (a duplicate key, several documents). The result has been
/// parsed again, and differs from the input in these values only.
pub fn set(text: &str, path: &[Step<'_>], values: &[(&str, &str)]) -> Option<String> {
    let mut text = text.to_owned();
    for (key, value) in values {
        text = set_one(&text, path, key, value)?;
    }
    Some(text)
}

fn set_one(text: &str, path: &[Step<'_>], key: &str, value: &str) -> Option<String> {
    let mut wanted = foreign(text).ok()?;
    walk(&mut wanted, path)?.as_object_mut()?.insert(key.to_owned(), value.into());
    let root = parse(text).ok()?;
    let Value::Map(entries) = &find(&root, path)?.value else { return None };
    // A JSON string is also a YAML string.
    let quoted = Json::from(value).to_string();
    let replaced =
        |start: usize, end: usize, with: &str| Some(format!("{}{with}{}", text.get(..start)?, text.get(end..)?));
    let candidates = match entries.iter().find(|(known, _)| known.name == key) {
        Some((known, node)) => {
            let (start, end) = (node.place.start, node.place.end);
            // Three candidates; the first that gives the wanted document is used. The second is for block scalars: it replaces
            // the indicator and keeps the line ends. The third is for a missing value, which has no place of its own.
            let colon = known.place.end + text.get(known.place.end..)?.find(':')? + 1;
            let last = colon + text.get(colon..end.max(colon))?.trim_end().len();
            let spaced = format!(" {quoted}");
            vec![replaced(start, end, &quoted), replaced(colon, last, &spaced), replaced(colon, colon, &spaced)]
        }
        None => {
            let (first, _) = entries.first()?;
            let (start, indent) = (first.place.start, " ".repeat(first.place.column.saturating_sub(1)));
            let in_block = format!("{key}: {quoted}\n{indent}");
            let in_flow = format!("{}: {quoted}, ", Json::from(key));
            vec![replaced(start, start, &in_block), replaced(start, start, &in_flow)]
        }
    };
    candidates.into_iter().flatten().find(|edited| foreign(edited).ok().as_ref() == Some(&wanted))
}

fn walk<'v>(value: &'v mut Json, path: &[Step<'_>]) -> Option<&'v mut Json> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get_mut(*key),
        Step::Named(name) => value.as_array_mut()?.iter_mut().find(|entry| entry["name"] == *name),
        Step::At(index) => value.get_mut(*index),
    })
}

fn find<'n>(root: &'n Node, path: &[Step<'_>]) -> Option<&'n Node> {
    let of_key = |node: &'n Node, key: &str| match &node.value {
        Value::Map(entries) => entries.iter().find(|(known, _)| known.name == key).map(|(_, value)| value),
        _ => None,
    };
    path.iter().try_fold(root, |node, step| match step {
        Step::Key(key) => of_key(node, key),
        Step::At(index) => match &node.value {
            Value::List(list) => list.get(*index),
            _ => None,
        },
        Step::Named(name) => match &node.value {
            Value::List(list) => list.iter().find(|entry| {
                matches!(of_key(entry, "name").map(|node| &node.value), Some(Value::Scalar { text, .. }) if text == name)
            }),
            _ => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: [Step<'static>; 3] = [Step::Key("users"), Step::Named("ana"), Step::Key("config")];

    fn edited(text: &str) -> Option<String> {
        set(text, &PATH, &[("id-token", "new"), ("refresh-token", "r\"2")])
    }

    #[test]
    fn values_are_replaced_and_the_rest_stays() {
        let text = "# mine\nusers:\n- name: bob\n  config: {id-token: bobs}\n- name: ana # me\n  config:\n    id-token: 'old' # until noon\n    \
                    client-id: c\n    refresh-token: >-\n      long\n      old\n    z: 1\nlast: 2\n";
        let wanted = "# mine\nusers:\n- name: bob\n  config: {id-token: bobs}\n- name: ana # me\n  config:\n    id-token: \"new\" # until noon\n    \
                      client-id: c\n    refresh-token: \"r\\\"2\"\n    z: 1\nlast: 2\n";
        assert_eq!(edited(text).unwrap(), wanted);
    }

    #[test]
    fn keys_are_added_in_blocks_in_flow_and_in_json() {
        for (text, wanted) in [
            (
                "users:\n- name: ana\n  config:\n    client-id: c\n",
                "users:\n- name: ana\n  config:\n    refresh-token: \"r\\\"2\"\n    id-token: \"new\"\n    client-id: c\n",
            ),
            (
                "users: [{name: ana, config: {client-id: c}}]\n",
                "users: [{name: ana, config: {\"refresh-token\": \"r\\\"2\", \"id-token\": \"new\", client-id: c}}]\n",
            ),
            (
                "{\"users\": [{\"name\": \"ana\", \"config\": {\"client-id\": \"c\"}}]}",
                "{\"users\": [{\"name\": \"ana\", \"config\": {\"refresh-token\": \"r\\\"2\", \"id-token\": \"new\", \"client-id\": \"c\"}}]}",
            ),
        ] {
            assert_eq!(edited(text).as_deref(), Some(wanted));
        }
    }

    #[test]
    fn values_of_any_form_are_replaced() {
        for old in [
            "",
            "~",
            "null",
            "old",
            "'old'",
            "\"o\\\"ld\"",
            "7",
            "|\n      old",
            ">-\n      old\n      more",
            "old\n      more",
        ] {
            let text = format!("users:\n- name: ana\n  config:\n    id-token: {old}\n    refresh-token: r\nlast: 2\n");
            let edited = edited(&text).unwrap_or_else(|| panic!("{text}"));
            let value = foreign(&edited).unwrap();
            assert_eq!(value["users"][0]["config"]["id-token"], "new", "{edited}");
            assert_eq!(
                (&value["users"][0]["config"]["refresh-token"], &value["last"]),
                (&"r\"2".into(), &2.into()),
                "{edited}"
            );
        }
    }

    #[test]
    fn what_cannot_be_edited_is_left_alone() {
        for text in [
            "",
            "users: []\n",
            "users: {ana: {config: {a: 1}}}\n",
            "users:\n- name: ana\n  config: {}\n",
            "users:\n- name: ana\n  config: {a: 1}\na: 1\na: 2\n",
            "users:\n- name: ana\n  config: {a: 1}\n---\nb: 2\n",
            // Another user shares these settings through an alias.
            "users:\n- name: bob\n  config: &c\n    id-token: old\n- name: ana\n  config: *c\n",
            "users: [",
        ] {
            assert_eq!(edited(text), None, "{text}");
        }
    }
}
