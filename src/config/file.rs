//! The YAML as people write it: a tree in which every key and value has its place in the file.
//!
//! A derived deserialiser stops at the first mistake and loses the places of keys. So this file builds a tree from the parser's
//! events, and [`super::validate`] walks it and collects every problem. Files of others are values
//! without places (`foreign`). No other file parses YAML.

pub mod edit;
mod foreign;

use std::{collections::HashMap, iter::Peekable};

use serde_saphyr::granit_parser::{ErrorKind, Event, Options, Parser, ScalarStyle, ScanError, Span, StrInput};

pub use self::foreign::{foreign, with_line_feeds};
use super::problem::{Place, Problem};

/// Maximum size of a file in bytes. A configuration of 1,000 routes has 100 KiB.
pub const LARGEST: usize = 1024 * 1024;

/// Maximum number of YAML nodes after alias expansion, and maximum depth. A file beyond them is an attack.
const MOST_NODES: usize = 50_000;
const DEEPEST: usize = 64;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub value: Value,
    pub place: Place,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    /// A quoted `text` is a string, even if it looks like a number.
    Scalar {
        text: String,
        quoted: bool,
    },
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
    pub name: String,
    pub place: Place,
}

impl Value {
    /// Returns a description of the value for a message: `a list`, `"70000"`.
    pub fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Scalar { text, .. } => format!("{:?}", text.chars().take(60).collect::<String>()),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "keys and values".to_owned(),
        }
    }
}

/// Parses the file. An empty file is [`Value::Null`].
///
/// # Errors
/// Returns one problem if the text is not YAML, else one for every duplicate key.
pub(super) fn parse(text: &str) -> Result<Node, Vec<Problem>> {
    let mut builder =
        Builder { events: events(text).peekable(), anchors: HashMap::new(), nodes: 0, problems: Vec::new(), text };
    match builder.document() {
        Ok(node) if builder.problems.is_empty() => Ok(node),
        Ok(_) => Err(builder.problems),
        Err(problem) => Err(vec![problem]),
    }
}

/// Returns the text up to the end of its first document: Go never looks at a second one of a kubeconfig, which may be half-written.
pub fn first_document(text: &str) -> &str {
    let mut events = events(text).map_while(Result::ok);
    let end = events.find_map(|(event, span)| matches!(event, Event::DocumentEnd).then(|| span.byte_range()));
    end.flatten().and_then(|end| text.get(..end.start)).unwrap_or(text)
}

/// Returns the parser's events, without comments: it buffers 96 lines of them, and refuses more.
fn events(text: &str) -> Parser<'_, StrInput<'_>> {
    let mut options = Options::default();
    options.emit_comments = false;
    // Those who read the events have lower limits.
    options.flow_nesting_limit = foreign::DEEPEST + 1;
    options.block_nesting_limit = foreign::DEEPEST + 1;
    Parser::new_from_str_with_options(text, options)
}

struct Builder<'a> {
    events: Peekable<Parser<'a, StrInput<'a>>>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    problems: Vec<Problem>,
    text: &'a str,
}

impl<'a> Builder<'a> {
    fn document(&mut self) -> Result<Node, Problem> {
        let mut root = None;
        while let Some((event, span)) = self.next()? {
            match event {
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                Event::StreamEnd => break,
                _ if root.is_some() => {
                    return Err(self.problem(span, "a second document: one file holds one configuration"));
                }
                event => root = Some(self.node(event, span, 0)?),
            }
        }
        Ok(root.unwrap_or(Node { value: Value::Null, place: Place { line: 1, column: 1, start: 0, end: 0 } }))
    }

    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, Problem> {
        self.events.next().transpose().map_err(|error| self.scan_error(&error))
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Problem> {
        self.nodes += 1;
        if depth > DEEPEST {
            return Err(self.problem(span, "nested too deeply"));
        }
        if self.nodes > MOST_NODES {
            return Err(self.problem(span, "the file is too large once its aliases are filled in"));
        }
        let mut place = self.place(&span);
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => {
                let quoted = style != ScalarStyle::Plain;
                let is_null = !quoted && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                (if is_null { Value::Null } else { Value::Scalar { text: text.into_owned(), quoted } }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        Some((Event::SequenceEnd, _)) | None => break,
                        Some((event, span)) => list.push(self.node(event, span, depth + 1)?),
                    }
                }
                (Value::List(list), anchor)
            }
            Event::MappingStart(_, anchor, _) => (Value::Map(self.map(depth)?), anchor),
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else {
                    return Err(self.problem(span, "a YAML alias that contains itself"));
                };
                self.nodes += count(&node);
                if self.nodes > MOST_NODES {
                    return Err(self.problem(span, "the file is too large once its aliases are filled in"));
                }
                return Ok(node);
            }
            _ => return Err(self.problem(span, "not a value")),
        };
        if let Value::List(_) | Value::Map(_) = value {
            // Messages show only the first line of a value.
            let line_end = self.text[place.start..].find('\n').map_or(self.text.len(), |length| place.start + length);
            place.end = line_end.max(place.start);
        }
        let node = Node { value, place };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn map(&mut self, depth: usize) -> Result<Vec<(Key, Node)>, Problem> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        let mut merged: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, span) = match self.next()? {
                Some((Event::MappingEnd, _)) | None => break,
                Some(event) => event,
            };
            let key = self.node(event, span, depth + 1)?;
            let name = match key.value {
                Value::Scalar { text, .. } => text,
                Value::Null => String::new(),
                _ => return Err(self.problem(span, "a key has to be a word")),
            };
            let Some((event, span)) = self.next()? else { break };
            let value = self.node(event, span, depth + 1)?;
            if name == "<<" {
                match value.value {
                    Value::Map(others) => merged.extend(others),
                    Value::List(maps) => merged.extend(
                        maps.into_iter()
                            .filter_map(|node| if let Value::Map(map) = node.value { Some(map) } else { None })
                            .flatten(),
                    ),
                    _ => return Err(self.problem(span, "what is merged has to be keys and values")),
                }
                continue;
            }
            if let Some((first, _)) = entries.iter().find(|(other, _)| other.name == name) {
                let message = format!("{name} is given twice, first in line {}", first.place.line);
                self.problems.push(Problem {
                    path: String::new(),
                    place: key.place,
                    message,
                    hint: Some("keep one of them".to_owned()),
                });
                continue;
            }
            entries.push((Key { name, place: key.place }, value));
        }
        for (key, value) in merged {
            if !entries.iter().any(|(other, _)| other.name == key.name) {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }

    fn place(&self, span: &Span) -> Place {
        let range = span.byte_range().unwrap_or(0..0);
        let end = range.end.min(self.text.len());
        Place { line: span.start.line(), column: span.start.col() + 1, start: range.start.min(end), end }
    }

    fn problem(&self, span: Span, message: &str) -> Problem {
        Problem { path: String::new(), place: self.place(&span), message: message.to_owned(), hint: None }
    }

    fn scan_error(&self, error: &ScanError) -> Problem {
        let marker = error.marker();
        let start = marker.byte_offset().unwrap_or(0).min(self.text.len());
        let place = Place { line: marker.line(), column: marker.col() + 1, start, end: start };
        let hint = error.info().contains("tab").then(|| "indent with spaces: YAML allows no tabs there".to_owned());
        Problem { path: String::new(), place, message: format!("not YAML: {}", error.info()), hint }
    }
}

fn count(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(list) => list.iter().map(count).sum(),
        Value::Map(map) => map.iter().map(|(_, value)| 1 + count(value)).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_know_their_place() {
        let node = parse("a: 1\nb:\n  c: [x, \"2\"]\n").unwrap();
        let Value::Map(map) = node.value else { panic!("not a map") };
        let Value::Map(b) = &map[1].1.value else { panic!("not a map") };
        assert_eq!((b[0].0.place.line, b[0].0.place.column), (3, 3));
        let Value::List(list) = &b[0].1.value else { panic!("not a list") };
        assert_eq!(list[1].value, Value::Scalar { text: "2".into(), quoted: true });
        assert_eq!((list[1].place.line, list[1].place.column), (3, 10));
    }

    #[test]
    fn duplicate_keys_are_all_told() {
        let problems = parse("a: 1\na: 2\nb: {c: 1, c: 2}\n").unwrap_err();
        assert_eq!(problems.iter().map(|problem| problem.place.line).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn aliases_and_merges_are_filled_in_and_bombs_refused() {
        let node = parse("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\n").unwrap();
        let Value::Map(map) = node.value else { panic!("not a map") };
        let Value::Map(y) = &map[1].1.value else { panic!("not a map") };
        assert_eq!(
            y.iter().map(|(key, value)| format!("{}{}", key.name, value.value.describe())).collect::<Vec<_>>(),
            ["b\"3\"", "a\"1\""]
        );

        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let of = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![of; 9].join(", "));
        }
        assert!(parse(&bomb).unwrap_err()[0].message.contains("aliases"));
    }

    #[test]
    fn what_is_no_yaml_is_a_problem_with_its_place() {
        let problems = parse("a: [1,\nb: 2\n").unwrap_err();
        assert!(problems[0].message.starts_with("not YAML") && problems[0].place.line == 1, "{problems:?}");
        assert_eq!(problems[0].hint, None);
        for text in ["a:\n\tb: 1\n", "a:\n  b: 1\n\tc: 1\n"] {
            let problems = parse(text).unwrap_err();
            assert!(problems[0].hint.as_ref().is_some_and(|hint| hint.contains("spaces")), "{problems:?}");
        }
        assert!(parse(&format!("a: {}", "[".repeat(1000))).is_err());
        assert_eq!(parse("").unwrap().value, Value::Null);
        assert_eq!(parse("# only a comment\n").unwrap().value, Value::Null);
    }
}
