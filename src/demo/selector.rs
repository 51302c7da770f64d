//! Label and field selectors of queries.

use serde_json::Value;

/// A condition on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

/// Selector of a request. Empty: matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Term>,
    /// Path, value, and whether the value must be equal; otherwise it must differ.
    fields: Vec<(String, String, bool)>,
}

/// Error of a selector that cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unable to parse requirement: {0:?}")]
pub struct SelectorError(String);

impl Selector {
    /// Parses the query parameters `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// The text is no selector.
    pub fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, SelectorError> {
        let labels = terms(labels.unwrap_or_default()).map(label).collect::<Result<_, _>>()?;
        let fields = terms(fields.unwrap_or_default()).map(field).collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let value = |key: &str| labels[key].as_str();
        let has_labels = self.labels.iter().all(|term| match term {
            Term::In(key, values) => value(key).is_some_and(|value| values.iter().any(|other| other == value)),
            Term::NotIn(key, values) => value(key).is_none_or(|value| values.iter().all(|other| other != value)),
            Term::Exists(key) => value(key).is_some(),
            Term::Missing(key) => value(key).is_none(),
        });
        has_labels
            && self.fields.iter().all(|(path, wanted, is)| {
                let found = path.split('.').fold(object, |object, key| &object[key]);
                (found.as_str().unwrap_or_default() == wanted) == *is
            })
    }
}

/// Splits at commas outside of parentheses.
fn terms(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0usize;
    let terms = text.split(move |character| {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    });
    terms.map(str::trim).filter(|term| !term.is_empty())
}

fn label(term: &str) -> Result<Term, SelectorError> {
    let error = || SelectorError(term.to_owned());
    if let Some(key) = term.strip_prefix('!') {
        return Ok(Term::Missing(key.trim().to_owned()));
    }
    if let Some((head, set)) = term.split_once('(') {
        let values = set.strip_suffix(')').ok_or_else(error)?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        return match head.split_whitespace().collect::<Vec<_>>()[..] {
            [key, "in"] => Ok(Term::In(key.to_owned(), values)),
            [key, "notin"] => Ok(Term::NotIn(key.to_owned(), values)),
            _ => Err(error()),
        };
    }
    if let Some((key, value)) = term.split_once("!=") {
        return Ok(Term::NotIn(key.trim().to_owned(), vec![value.trim().to_owned()]));
    }
    if let Some((key, value)) = term.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        return Ok(Term::In(key.trim().to_owned(), vec![value.trim().to_owned()]));
    }
    if term.contains(char::is_whitespace) { Err(error()) } else { Ok(Term::Exists(term.to_owned())) }
}

fn field(term: &str) -> Result<(String, String, bool), SelectorError> {
    if let Some((path, value)) = term.split_once("!=") {
        return Ok((path.to_owned(), value.to_owned(), false));
    }
    let (path, value) = term.split_once('=').ok_or_else(|| SelectorError(term.to_owned()))?;
    Ok((path.to_owned(), value.strip_prefix('=').unwrap_or(value).to_owned(), true))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_and_fields_select_as_kubectl_writes_them() {
        let pod = json!({"metadata": {"name": "web-1", "labels": {"app": "web", "tier": "front"}}, "status": {"phase": "Running"}});
        for (labels, fields, wanted) in [
            ("", "", true),
            ("app=web", "", true),
            ("app==web,tier=front", "", true),
            ("app!=web", "", false),
            ("app in (api, web),tier", "", true),
            ("app notin (api,web)", "", false),
            ("!app", "", false),
            ("!owner", "", true),
            ("owner!=me", "", true),
            ("", "metadata.name=web-1", true),
            ("", "metadata.name=web-2", false),
            ("", "status.phase!=Running", false),
            ("app=web", "status.phase==Running,metadata.name=web-1", true),
        ] {
            let selector = Selector::parse(Some(labels), Some(fields)).unwrap();
            assert_eq!(selector.matches(&pod), wanted, "{labels:?} {fields:?}");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for labels in ["app in web", "app (a)", "app in (a"] {
            assert!(Selector::parse(Some(labels), None).is_err(), "{labels}");
        }
        assert!(Selector::parse(None, Some("metadata.name")).is_err());
    }
}
