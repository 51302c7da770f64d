//! The `server` of a cluster, in all forms that client-go accepts.

use http::{HeaderValue, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use crate::k8s::{
    credential::basic,
    proxy::{credentials, has_valid_port, without_password},
};

/// Bytes to escape in a path, as in Go (`net/url`).
const NOT_IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b',')
    .remove(b'/')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'@');

/// An API server.
#[derive(Debug)]
pub(super) struct Server {
    /// URL without user and password.
    pub url: Uri,
    /// Authorization header of a URL with a user. As in net/http, it replaces that of the kubeconfig's user.
    pub header: Option<HeaderValue>,
}

/// Parses a server. As in client-go, an address without a scheme means `http://host:port`, even if the entry has TLS
/// settings.
///
/// # Errors
/// Fails if the text is not a URL, or if a path follows a host without a scheme. The error does not contain a password.
pub(super) fn url(server: &str) -> Result<Server, String> {
    let is_whole = server.split_once("://").is_some_and(|(_, rest)| !rest.is_empty() && !rest.starts_with('/'));
    let refused =
        |why: &str| Err(format!("server is {:?}: {why}, e.g. https://10.0.0.1:6443", without_password(server)));
    let whole = if is_whole { server.to_owned() } else { format!("http://{server}") };
    let Ok(url) = whole.parse::<Uri>() else {
        return refused(match server.is_ascii() {
            true => "it has to be a URL",
            false => "its host has to be written in ASCII (Punycode, xn--...)",
        });
    };
    let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return refused("it has to be a URL");
    };
    if !matches!(scheme, "http" | "https") {
        return refused("its scheme has to be https or http");
    }
    let place = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, host)| host);
    if authority.host().is_empty() || !has_valid_port(authority) {
        return refused("it has to have a host, and a port up to 65535");
    }
    if !is_whole && url.path() != "/" {
        return refused("a path needs a scheme in front of the host");
    }
    let header = credentials(&url).and_then(|(user, password)| basic(&user, &password));
    match format!("{scheme}://{place}{}", clean(url.path())).parse() {
        Ok(url) => Ok(Server { url, header }),
        Err(_) => refused("it has to be a URL"),
    }
}

/// Returns a path as client-go sends it: decoded, cleaned as by `path.Join`, and encoded again.
fn clean(path: &str) -> String {
    let decoded = percent_decode_str(path).collect::<Vec<u8>>();
    let mut clean: Vec<&[u8]> = Vec::new();
    for segment in decoded.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => _ = clean.pop(),
            segment => clean.push(segment),
        }
    }
    let encode = |segment: &[u8]| percent_encode(segment, NOT_IN_PATH).to_string();
    format!("/{}", clean.into_iter().map(encode).collect::<Vec<_>>().join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_what_client_go_makes_of_it() {
        let cases = [
            ("https://10.0.0.1:6443", Ok("https://10.0.0.1:6443/")),
            ("HTTPS://a.test/", Ok("https://a.test/")),
            ("https://a.test//", Ok("https://a.test/")),
            ("https://a.test/?a=b", Ok("https://a.test/")),
            ("https://a.test/k8s/clusters/c-1/", Ok("https://a.test/k8s/clusters/c-1")),
            ("https://a.test//k8s/./x/../clusters/c%2D1", Ok("https://a.test/k8s/clusters/c-1")),
            ("https://a.test/a%20b/c:d", Ok("https://a.test/a%20b/c:d")),
            ("https://ana:geheim@a.test:6443/x", Ok("https://a.test:6443/x")),
            ("https://[fd00::1]:6443", Ok("https://[fd00::1]:6443/")),
            ("https://[fd00::1]", Ok("https://[fd00::1]/")),
            ("http://localhost:8080", Ok("http://localhost:8080/")),
            ("localhost:6443", Ok("http://localhost:6443/")),
            ("10.0.0.1:6443", Ok("http://10.0.0.1:6443/")),
            ("a.test", Ok("http://a.test/")),
            ("10.0.0.1:6443/k8s/c-1", Err("a path needs a scheme")),
            ("ftp://a.test", Err("its scheme has to be https or http")),
            ("https://a.test:99999", Err("a port up to 65535")),
            ("https://[fd00::1]:99999", Err("a port up to 65535")),
            ("https://a.test:+443", Err("a port up to 65535")),
            ("https://a b", Err("it has to be a URL")),
            ("https://bücher.test", Err("written in ASCII (Punycode")),
            (" https://a.test", Err("it has to be a URL")),
            ("unix:///run/api.sock", Err("e.g. https://10.0.0.1:6443")),
            ("https://", Err("e.g. https://10.0.0.1:6443")),
            ("", Err("it has to be a URL")),
        ];
        for (text, wanted) in cases {
            match (url(text), wanted) {
                (Ok(server), Ok(wanted)) => assert_eq!(server.url.to_string(), wanted, "{text:?}"),
                (Err(reason), Err(wanted)) => assert!(reason.contains(wanted), "{text:?}: {reason}"),
                (found, wanted) => panic!("{text:?}: {found:?}, and not {wanted:?}"),
            }
        }
    }

    #[test]
    fn a_user_of_the_url_signs_in_and_no_text_shows_the_password() {
        let server = url("https://ana:p%40ss@a.test").unwrap();
        assert_eq!(server.header, basic("ana", "p@ss"));
        assert!(url("https://a.test").unwrap().header.is_none());
        for broken in ["https://ana:geheim@a.test:99999", "ana:geheim@a.test/x", "ftp://ana:geheim@a.test"] {
            let reason = url(broken).unwrap_err();
            assert!(!reason.contains("geheim") && reason.contains("ana:***@a.test"), "{reason}");
        }
    }
}
