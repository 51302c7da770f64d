//! `--env NAME=TEMPLATE`: a text with placeholders for the addresses of targets.
//!
//! `{db}` is `127.0.0.1:40001`, `{db.host}` and `{db.port}` are its parts, `{web.url}` is a URL; `{{` and `}}` are braces.

use crate::app::opened::Opened;

/// Error of a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("there is no {{{0}}}")]
    Unknown(String),
    #[error("{{{0}.url}} is not known: its port does not say that it is HTTP")]
    NoUrl(String),
    #[error("several targets are called {0:?}: give each a name with --to NAME=TARGET")]
    Several(String),
    #[error("a brace is not closed")]
    Open,
}

/// Replaces the placeholders of a template.
///
/// # Errors
/// A placeholder names no target, or a brace is not closed.
pub fn fill(template: &str, targets: &[Opened]) -> Result<String, TemplateError> {
    let (mut text, mut rest) = (String::new(), template);
    while let Some(at) = rest.find(['{', '}']) {
        let (before, found) = rest.split_at(at);
        text.push_str(before);
        if let Some(behind) = found.strip_prefix("{{").or_else(|| found.strip_prefix("}}")) {
            text.push_str(&found[..1]);
            rest = behind;
        } else if let Some(behind) = found.strip_prefix('}') {
            text.push('}');
            rest = behind;
        } else {
            let (name, behind) = found[1..].split_once('}').ok_or(TemplateError::Open)?;
            text.push_str(&value(name, targets)?);
            rest = behind;
        }
    }
    text.push_str(rest);
    Ok(text)
}

fn value(placeholder: &str, targets: &[Opened]) -> Result<String, TemplateError> {
    let unknown = || TemplateError::Unknown(placeholder.to_owned());
    let (name, part) = placeholder.split_once('.').map_or((placeholder, None), |(name, part)| (name, Some(part)));
    let mut called = called(name, targets);
    let target = called.next().ok_or_else(unknown)?;
    if called.next().is_some() {
        return Err(TemplateError::Several(name.to_owned()));
    }
    Ok(match part {
        None | Some("addr") => target.address.to_string(),
        Some("host") => target.address.ip().to_string(),
        Some("port") => target.address.port().to_string(),
        Some("url") => target.url().ok_or_else(|| TemplateError::NoUrl(name.to_owned()))?,
        Some(_) => return Err(unknown()),
    })
}

fn called<'o>(name: &str, targets: &'o [Opened]) -> impl Iterator<Item = &'o Opened> {
    targets.iter().filter(move |target| target.called() == Some(name))
}

/// Returns every valid placeholder.
pub fn placeholders(targets: &[Opened]) -> Vec<String> {
    let of = |target: &Opened| {
        let name = target.called().filter(|name| called(name, targets).count() == 1)?;
        let url = target.url().map(|_| format!("{{{name}.url}}"));
        Some([format!("{{{name}}}"), format!("{{{name}.host}}"), format!("{{{name}.port}}")].into_iter().chain(url))
    };
    targets.iter().filter_map(of).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Scheme;

    fn targets() -> Vec<Opened> {
        let target = |name: &str, port, scheme| Opened {
            name: Some(name.to_owned()),
            address: ([127, 0, 0, 1], port).into(),
            scheme,
            port: None,
            service: None,
        };
        vec![target("db", 5000, None), target("web", 5001, Some(Scheme::Http))]
    }

    #[test]
    fn a_name_of_several_targets_is_no_placeholder() {
        let mut targets = targets();
        targets.push(targets[0].clone());
        assert_eq!(fill("{db.port}", &targets), Err(TemplateError::Several("db".to_owned())));
        assert_eq!(placeholders(&targets), ["{web}", "{web.host}", "{web.port}", "{web.url}"]);
    }

    #[test]
    fn names_are_filled_in_and_everything_else_stays() {
        for (template, filled) in [
            ("postgres://app@{db}/shop", "postgres://app@127.0.0.1:5000/shop"),
            ("{db.host}-{db.port}-{web.url}/x", "127.0.0.1-5000-http://127.0.0.1:5001/x"),
            ("{{db}} {{{db.port}}} é", "{db} {5000} é"),
            ("{\"a\"", "Open"),
            ("plain", "plain"),
            ("", ""),
        ] {
            let shown = fill(template, &targets()).unwrap_or_else(|error| format!("{error:?}"));
            assert_eq!(shown, filled, "{template}");
        }
    }

    #[test]
    fn a_name_that_is_not_known_is_an_error() {
        let error = |template: &str| fill(template, &targets()).unwrap_err();
        assert_eq!(error("{dbb}"), TemplateError::Unknown("dbb".into()));
        assert_eq!(error("{db.user}"), TemplateError::Unknown("db.user".into()));
        assert_eq!(error("{}"), TemplateError::Unknown(String::new()));
        assert_eq!(error("{db.url}"), TemplateError::NoUrl("db".into()));
        assert_eq!(error("{db").to_string(), "a brace is not closed");
        assert_eq!(error("{dbb}").to_string(), "there is no {dbb}");
        assert_eq!(
            placeholders(&targets()),
            ["{db}", "{db.host}", "{db.port}", "{web}", "{web.host}", "{web.port}", "{web.url}"]
        );
    }
}
