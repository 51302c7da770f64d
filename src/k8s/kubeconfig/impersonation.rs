//! Impersonation headers: `as`, `as-uid`, `as-groups` and `as-user-extra` of a user.

use http::{HeaderMap, HeaderName, HeaderValue};
use kube::config::AuthInfo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Bytes to escape in a header name: all but letters, digits and the marks of RFC 9110, section 5.6.2; the percent sign
/// is escaped too.
const NOT_IN_NAME: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// Returns the headers. Keys of `as-user-extra` are percent-encoded in them.
///
/// # Errors
/// Fails if a value has characters that HTTP does not allow.
pub(super) fn headers(user: &AuthInfo) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let mut add = |name: &str, key: &str, value: &str| {
        let value = HeaderValue::try_from(value);
        let header = HeaderName::try_from(name).ok().zip(value.ok());
        let (name, value) =
            header.ok_or_else(|| format!("its {key} has a line end, or another character that HTTP does not allow"))?;
        headers.append(name, value);
        Ok::<_, String>(())
    };
    if let Some(name) = &user.impersonate {
        add("impersonate-user", "as", name)?;
    }
    if let Some(uid) = &user.impersonate_uid {
        add("impersonate-uid", "as-uid", uid)?;
    }
    for group in user.impersonate_groups.iter().flatten() {
        add("impersonate-group", "as-groups", group)?;
    }
    for (key, values) in user.impersonate_user_extra.iter().flatten() {
        let name = format!("impersonate-extra-{}", utf8_percent_encode(key, NOT_IN_NAME));
        for value in values {
            add(&name, "as-user-extra", value)?;
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::foreign;

    fn of(text: &str) -> Result<HeaderMap, String> {
        headers(&serde_json::from_value(foreign(text).unwrap()).unwrap())
    }

    #[test]
    fn each_value_is_a_header_of_its_own() {
        let headers =
            of("{as: ana, as-uid: u, as-groups: [a, b], as-user-extra: {example.com/reason: [x, z]}}").unwrap();
        let all = |name: &str| headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((all("impersonate-user"), all("impersonate-uid")), (vec!["ana"], vec!["u"]));
        assert_eq!(all("impersonate-group"), ["a", "b"]);
        assert_eq!(all("impersonate-extra-example.com%2freason"), ["x", "z"]);
        assert!(of("{}").unwrap().is_empty());
        assert!(of("{as: \"a\\nb\"}").unwrap_err().starts_with("its as has a line end"));
    }
}
