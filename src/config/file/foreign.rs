//! YAML files of others, such as kubeconfigs, as values: what `sigs.k8s.io/yaml`, the parser of kubectl, makes of them.
//!
//! It resolves plain words by YAML 1.1 (`yes` is true, `0x10` a number), and converts the values to JSON.

use std::{borrow::Cow, collections::HashMap};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Number, Value};

use super::{ErrorKind, Event, Parser, ScalarStyle, ScanError, StrInput, events};

const TAGS: &str = "tag:yaml.org,2002:";

/// Depth below which values become null: no setting is that deep, and deeper values would need a larger stack.
const DEEP: usize = 256;

/// Maximum depth of nested values, that of Go.
pub(super) const DEEPEST: usize = 10_000;

/// Maximum number of places that are mended: each one means to read the file again.
const MOST_MENDED: usize = 100;

/// Go's limits of aliases: more than 100 values of them, in a file of more than 1,000 values, of which they are 99 %. A file of
/// more than 400,000 values may have fewer.
const FEW_ALIASES: usize = 100;
const FEW_VALUES: usize = 1_000;
const MANY_VALUES: usize = 400_000;
const MOST_VALUES: usize = 4_000_000;

/// Returns the first document of a YAML file that adit does not own, as plain values. The last of duplicate keys counts, as in
/// Go. An empty file is [`Value::Null`].
///
/// # Errors
/// The text is not YAML. The error says why and where, without the surrounding text, which may be a token.
pub fn foreign(text: &str) -> Result<Value, String> {
    let mut text = with_line_feeds(text);
    let mut directives = text.lines().take_while(|line| line.is_empty() || line.starts_with(['#', '%']));
    if directives.any(|line| line.strip_prefix("%YAML").is_some_and(|version| version.trim() != "1.1")) {
        return Err("it is not valid YAML: kubectl reads %YAML 1.1 only".to_owned());
    }
    for _ in 0..MOST_MENDED {
        let mut reader =
            Reader { text: &text, events: events(&text), anchors: HashMap::new(), values: 0, of_aliases: 0 };
        let mended = match reader.document() {
            Err(Fault::Scan(error)) => mended(&text, &error).ok_or_else(|| words(&text, &error)),
            Err(Fault::Value(reason, line)) => Err(format!("{reason} (line {line})")),
            Ok(value) => return Ok(value),
        };
        text = mended.map_err(|reason| format!("it is not valid YAML: {reason}"))?.into();
    }
    Err("it is not valid YAML: put a space in front of each comment, and no tabs in front of values".to_owned())
}

/// Returns a text with the same meaning for Go, if only our parser has an error there.
fn mended(text: &str, error: &ScanError) -> Option<String> {
    let at = error.marker().byte_offset()?;
    let (before, behind) = text.split_at_checked(at)?;
    let spaces = " ".repeat(DEEP);
    let (instead, replaced) = match error.kind() {
        // In YAML 1.1, a comment needs no space in front.
        ErrorKind::CommentNotSeparated => (" ", 0),
        // Text behind a map in braces is not read, but our parser looks for a colon there.
        ErrorKind::MisplacedFlowCollectionEnd if text.trim_start().starts_with('{') => return Some(before.to_owned()),
        ErrorKind::PlainScalarStartsWithDashFlowIndicator => ("'-'", 1),
        // Lines inside of quotes may begin at any column, and with tabs.
        ErrorKind::InvalidQuotedScalarIndent => (&*spaces, 0),
        ErrorKind::TabInIndentation => (" ", 1),
        // Lines inside of brackets may begin with tabs.
        ErrorKind::TabInBlockIndentation => {
            let (lines, tabs) = before.rsplit_once('\n')?;
            let is_inside = lines.trim_end().ends_with(['[', '{', ',']) || behind.starts_with([']', '}', ',']);
            return is_inside.then(|| format!("{lines}\n{}{behind}", " ".repeat(tabs.len())));
        }
        _ => return None,
    };
    Some(format!("{before}{instead}{}", behind.get(replaced..)?))
}

/// Replaces the other line ends of YAML 1.1 (NEL, LS, PS), which are letters for our parser.
pub fn with_line_feeds(text: &str) -> Cow<'_, str> {
    let ends = ['\u{85}', '\u{2028}', '\u{2029}'];
    if text.contains(ends) { text.replace(ends, "\n").into() } else { text.into() }
}

fn words(text: &str, error: &ScanError) -> String {
    let at = error.marker();
    // A line with a tab may be taken for one that goes on with the line before it.
    let has_tab =
        |line: &str| line.split(|char: char| !char.is_whitespace()).next().is_some_and(|it| it.contains('\t'));
    let near = text.lines().enumerate().skip(at.line().saturating_sub(1)).take(2);
    match near.into_iter().find(|(_, line)| has_tab(line)) {
        Some((index, _)) => format!("line {} is indented with a tab, and needs spaces", index + 1),
        None => format!("{} (line {}, column {})", error.info(), at.line(), at.col() + 1),
    }
}

enum Fault {
    Scan(ScanError),
    /// A reason, and a line.
    Value(&'static str, usize),
}

struct Reader<'a> {
    text: &'a str,
    events: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Value>,
    /// Number of values so far, and of those that came by aliases.
    values: usize,
    of_aliases: usize,
}

impl<'a> Reader<'a> {
    fn document(&mut self) -> Result<Value, Fault> {
        loop {
            match self.next()? {
                (Event::StreamStart | Event::DocumentStart(..), _) => {}
                (Event::StreamEnd | Event::DocumentEnd, _) => return Ok(Value::Null),
                (event, line) => {
                    let is_scalar = matches!(event, Event::Scalar(..));
                    let value = self.value(event, line, 0)?;
                    // As in Go, text behind a list or map is not read. It may be another document, or half-written.
                    return if is_scalar { self.next().map(|_| value) } else { Ok(value) };
                }
            }
        }
    }

    /// Returns the next event and its line.
    fn next(&mut self) -> Result<(Event<'a>, usize), Fault> {
        let Some(event) = self.events.next() else { return Ok((Event::StreamEnd, 0)) };
        let (mut event, span) = event.map_err(Fault::Scan)?;
        if let Event::Scalar(text, ScalarStyle::Literal | ScalarStyle::Folded, ..) = &mut event
            && span.end.byte_offset() == Some(self.text.len())
            && !self.text.ends_with(['\n', '\r'])
            && self.text.lines().next_back().is_some_and(|line| !line.trim().is_empty())
        {
            // A block ends with the file, which has no line end that it could have.
            *text = text.trim_end_matches('\n').to_owned().into();
        }
        Ok((event, span.start.line()))
    }

    fn value(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Value, Fault> {
        let fault = |reason| Err(Fault::Value(reason, line));
        self.values += 1;
        if depth > DEEP && matches!(event, Event::SequenceStart(..) | Event::MappingStart(..)) {
            return self.skip(event, line, depth).map(|()| Value::Null);
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.map(|tag| format!("{}{}", tag.handle(), tag.suffix()));
                match scalar(&text, style == ScalarStyle::Plain, tag.as_deref()) {
                    Ok(value) => (value, anchor),
                    Err(reason) => return fault(reason),
                }
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut list = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, line) => list.push(self.value(event, line, depth + 1)?),
                    }
                }
                (Value::Array(list), anchor)
            }
            Event::MappingStart(_, anchor, _) => (Value::Object(self.map(depth)?), anchor),
            Event::Alias(id) => {
                let Some(value) = self.anchors.get(&id).cloned() else {
                    return fault("an alias is inside of its own value");
                };
                let count = count(&value);
                (self.values, self.of_aliases) = (self.values + count, self.of_aliases + count);
                if self.has_too_many_aliases() {
                    return fault("there are too many aliases");
                }
                return Ok(value);
            }
            _ => return fault("a value is missing"),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    /// Reads the rest of a list or map.
    fn skip(&mut self, mut event: Event<'a>, mut line: usize, mut depth: usize) -> Result<(), Fault> {
        let outside = depth;
        loop {
            match event {
                Event::SequenceStart(_, anchor, _) | Event::MappingStart(_, anchor, _) => {
                    depth += 1;
                    self.anchors.insert(anchor, Value::Null);
                }
                Event::SequenceEnd | Event::MappingEnd => depth -= 1,
                Event::Scalar(_, _, anchor, _) => _ = self.anchors.insert(anchor, Value::Null),
                _ => {}
            }
            if depth > DEEPEST {
                return Err(Fault::Value("values are nested too deeply", line));
            }
            if depth == outside {
                return Ok(());
            }
            (event, line) = self.next()?;
        }
    }

    fn map(&mut self, depth: usize) -> Result<Map<String, Value>, Fault> {
        let mut map = Map::new();
        loop {
            let (event, line) = match self.next()? {
                (Event::MappingEnd, _) => return Ok(map),
                next => next,
            };
            let merges = match &event {
                Event::Scalar(text, style, _, tag) => {
                    let of_tag = tag.as_ref().map(|tag| format!("{}{}", tag.handle(), tag.suffix()));
                    text == "<<" && of_tag.map_or(*style == ScalarStyle::Plain, |tag| tag == format!("{TAGS}merge"))
                }
                _ => false,
            };
            let key = match event {
                Event::Scalar(text, ..) if has_no_json(&text) => text.into(),
                event => self.value(event, line, depth + 1)?,
            };
            let (event, of_value) = self.next()?;
            let value = self.value(event, of_value, depth + 1)?;
            if merges {
                let reason = "'<<' needs keys and values, or a list of them";
                merge(&mut map, value).ok_or(Fault::Value(reason, line))?;
                continue;
            }
            let key = match key {
                Value::String(key) => key,
                Value::Number(key) => key.to_string(),
                Value::Bool(key) => key.to_string(),
                _ => return Err(Fault::Value("a key is not a string", line)),
            };
            map.insert(key, value);
        }
    }

    fn has_too_many_aliases(&self) -> bool {
        let allowed = match self.values {
            ..=MANY_VALUES => 0.99,
            MOST_VALUES.. => 0.10,
            values => 0.99 - 0.89 * (values - MANY_VALUES) as f64 / (MOST_VALUES - MANY_VALUES) as f64,
        };
        self.of_aliases > FEW_ALIASES
            && self.values > FEW_VALUES
            && self.of_aliases as f64 > allowed * self.values as f64
    }
}

/// Adds the entries of a `<<` to the map. As in Go, they replace those in front of it, and of several maps the first wins.
fn merge(map: &mut Map<String, Value>, value: Value) -> Option<()> {
    match value {
        Value::Object(other) => map.extend(other),
        Value::Array(others) => {
            for other in others.into_iter().rev() {
                let Value::Object(other) = other else { return None };
                map.extend(other);
            }
        }
        _ => return None,
    }
    Some(())
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(|value| 1 + count(value)).sum(),
        _ => 0,
    }
}

/// Returns the value of a scalar.
fn scalar(text: &str, is_plain: bool, tag: Option<&str>) -> Result<Value, &'static str> {
    if tag == Some("!") && text.is_empty() {
        return Ok("".into());
    }
    // A lone `!` has no own meaning for Go.
    let tag = tag.filter(|tag| *tag != "!").map(|tag| tag.strip_prefix(TAGS).unwrap_or("other"));
    let mismatch = Err("a value does not have the type of its tag");
    match tag {
        None if is_plain => resolve(text),
        None | Some("str" | "other" | "timestamp") => Ok(text.into()),
        Some("binary") => {
            let bytes =
                STANDARD.decode(text.replace(['\r', '\n'], "")).map_err(|_| "a !!binary is not valid base64")?;
            Ok(String::from_utf8_lossy(&bytes).into())
        }
        Some(tag) => match (tag, resolve(text)?) {
            ("bool", value @ Value::Bool(_)) | ("null", value @ Value::Null) => Ok(value),
            ("int", Value::Number(number)) if !number.is_f64() => Ok(number.into()),
            ("float", value @ Value::Number(_)) => Ok(value),
            ("bool" | "null" | "int" | "float", _) => mismatch,
            _ => Ok(text.into()),
        },
    }
}

/// Returns the meaning of a plain word.
fn resolve(text: &str) -> Result<Value, &'static str> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Value::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Value::Bool(false),
        _ if has_no_json(text) => return Err("JSON has no .inf and .nan"),
        _ => number(text).map_or_else(|| text.into(), Value::Number),
    })
}

/// Returns whether the word is infinite or no number. JSON has such keys, as text, but no such values.
fn has_no_json(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN")
}

/// Reads a number as Go's `strconv` does with base 0, or as a decimal fraction. Underscores are ignored.
fn number(text: &str) -> Option<Number> {
    let digit_or_sign = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'+' | b'-');
    let plain = match text.as_bytes() {
        [b'.', ..] => text.to_owned(),
        [first, ..] if digit_or_sign(first) => text.replace('_', ""),
        _ => return None,
    };
    let (sign, digits) = match plain.strip_prefix(['+', '-']) {
        Some(digits) => (&plain[..1], digits),
        None => ("", plain.as_str()),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, of_radix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (16, &lower[2..]),
        [b'0', b'o', ..] => (8, &lower[2..]),
        [b'0', b'b', ..] => (2, &lower[2..]),
        [b'0', _, ..] => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    // The parsers below would take a second sign.
    if of_radix.starts_with(|first: char| first.is_ascii_hexdigit()) {
        let signed = if sign == "-" { format!("-{of_radix}") } else { of_radix.to_owned() };
        if let Ok(number) = i64::from_str_radix(&signed, radix) {
            return Some(number.into());
        }
        if sign.is_empty()
            && let Ok(number) = u64::from_str_radix(of_radix, radix)
        {
            return Some(number.into());
        }
    }
    let is_fraction = {
        let mantissa = lower.split('e').next().unwrap_or_default();
        let exponent = lower.split_once('e').map(|(_, exponent)| exponent.strip_prefix(['+', '-']).unwrap_or(exponent));
        let all_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        all_digits(whole)
            && all_digits(part)
            && !(whole.is_empty() && part.is_empty())
            && exponent.is_none_or(|exponent| !exponent.is_empty() && all_digits(exponent))
    };
    is_fraction.then(|| plain.parse().ok().and_then(Number::from_f64)).flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_words_mean_what_they_mean_for_kubectl() {
        for (text, wanted) in [
            ("yes", json!(true)),
            ("ON", json!(true)),
            ("y", json!(true)),
            ("off", json!(false)),
            ("truE", json!("truE")),
            ("yEs", json!("yEs")),
            ("oN", json!("oN")),
            ("nuLL", json!("nuLL")),
            ("~", json!(null)),
            ("''", json!("")),
            ("! yes", json!(true)),
            ("!", json!("")),
            ("'yes'", json!("yes")),
            ("!!str yes", json!("yes")),
            ("!!bool 'yes'", json!(true)),
            ("!own yes", json!("yes")),
            ("!!binary aGk=", json!("hi")),
            ("010", json!(8)),
            ("0o10", json!(8)),
            ("-0x1F", json!(-31)),
            ("0b11", json!(3)),
            ("1__0", json!(10)),
            ("1_", json!(1)),
            ("08", json!(8.0)),
            ("+1", json!(1)),
            ("0x", json!("0x")),
            ("--1", json!("--1")),
            ("1.", json!(1.0)),
            (".5", json!(0.5)),
            ("12e03", json!(12_000.0)),
            ("1e400", json!("1e400")),
            ("18446744073709551615", json!(u64::MAX)),
            ("-18446744073709551615", json!(-18_446_744_073_709_551_615.0)),
            ("190:20:30", json!("190:20:30")),
            ("2024-01-01", json!("2024-01-01")),
            ("1.2.3", json!("1.2.3")),
            ("e5", json!("e5")),
            (".", json!(".")),
            ("|\n  yes\n", json!("yes\n")),
        ] {
            assert_eq!(foreign(&format!("a: {text}")).unwrap()["a"], wanted, "{text}");
        }
        for (text, wanted) in [
            ("!!null x", "a value does not have the type of its tag (line 2)"),
            ("!!int 1.5", "a value does not have the type of its tag (line 2)"),
            ("!!binary '%'", "a !!binary is not valid base64 (line 2)"),
            ("-.INF", "JSON has no .inf and .nan (line 2)"),
        ] {
            assert_eq!(
                foreign(&format!("\na: {text}")).unwrap_err(),
                format!("it is not valid YAML: {wanted}"),
                "{text}"
            );
        }
    }

    #[test]
    fn keys_and_merges_are_those_of_kubectl() {
        for (text, wanted) in [
            ("a: 1\na: 2", json!({"a": 2})),
            ("0x5: 1\nyes: 2\n1.5: 3\n.inf: 4", json!({"5": 1, "true": 2, "1.5": 3, ".inf": 4})),
            ("<<: {a: 1, b: 1}\na: 2", json!({"a": 2, "b": 1})),
            ("a: 2\n<<: {a: 1}", json!({"a": 1})),
            ("<<: [{a: 1}, {a: 2, b: 2}]", json!({"a": 1, "b": 2})),
            ("<<: {a: 1}\n<<: {a: 2}", json!({"a": 2})),
            ("<<: {<<: {a: 1}}", json!({"a": 1})),
            ("'<<': {a: 1}", json!({"<<": {"a": 1}})),
            ("b: &x {a: 1}\nc: *x", json!({"b": {"a": 1}, "c": {"a": 1}})),
            ("a: !!seq {b: 1}", json!({"a": {"b": 1}})),
            ("a: 1\n---\n[", json!({"a": 1})),
            ("{a: 1}]", json!({"a": 1})),
            ("{a: 1} b", json!({"a": 1})),
            ("a: 1\u{85}b: |\u{2028} x\u{2029} y", json!({"a": 1, "b": "x\ny"})),
            ("# none", json!(null)),
            ("a: {b: 1}#c\nd: \"e\"#f", json!({"a": {"b": 1}, "d": "e"})),
            ("a: [-, b, -]", json!({"a": ["-", "b", "-"]})),
            ("a: {\n\tb: 1,\n\tc: [\n\t\t'1'\n\t]\n\t}", json!({"a": {"b": 1, "c": ["1"]}})),
            ("a: \"b\nc\n\td\n\n\te\"", json!({"a": "b c d\ne"})),
            ("a: |\n  b\n  c", json!({"a": "b\nc"})),
            ("a: >+\n  b\n  c", json!({"a": "b c"})),
            ("# c\n%YAML 1.1\n---\na: 1", json!({"a": 1})),
            ("a: |\n  b\n", json!({"a": "b\n"})),
        ] {
            assert_eq!(foreign(text).unwrap(), wanted, "{text}");
        }
        for text in
            ["<<: \na: 1", "<<: [[{a: 1}]]", "<<: 5", "[a]: 1", "~: 1", "a: &a [*a]", "a: *b", "%YAML 1.2\n---\na: 1"]
        {
            assert!(foreign(text).unwrap_err().starts_with("it is not valid YAML: "), "{text}");
        }
    }

    #[test]
    fn deep_and_multiplied_values_are_refused() {
        let deep = |depth| foreign(&format!("a: {}{}", "[".repeat(depth), "]".repeat(depth)));
        for depth in [200, 300, 9_999] {
            assert!(deep(depth).is_ok(), "{depth}");
        }
        for depth in [10_001, 20_000] {
            assert!(deep(depth).is_err(), "{depth}");
        }
        let deep = format!("a: {}&x 1, *x{}\nb: [*x]", "[".repeat(300), "]".repeat(300));
        assert_eq!(foreign(&deep).unwrap()["b"], json!([null]));
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let of = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![of; 9].join(", "));
        }
        assert!(foreign(&bomb).unwrap_err().contains("too many aliases"));
    }
}
