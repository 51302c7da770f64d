//! The `server` of a cluster, in all forms that client-go takes.

use http::Uri;

/// Returns the URL. Without a scheme it is `http://host:port`, as in client-go, whatever the entry says about TLS.
///
/// # Errors
/// It is none, or a path follows a host without a scheme.
pub(super) fn url(server: &str) -> Result<Uri, String> {
    let is_whole = server.split_once("://").is_some_and(|(_, rest)| !rest.is_empty() && !rest.starts_with('/'));
    let refused = |why: &str| Err(format!("server is {server:?}: {why}, e.g. https://10.0.0.1:6443"));
    let whole = if is_whole { server.to_owned() } else { format!("http://{server}") };
    let Ok(url) = whole.parse::<Uri>() else { return refused("it has to be a URL") };
    let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
        return refused("it has to be a URL");
    };
    if !matches!(scheme, "http" | "https") {
        return refused("its scheme has to be https or http");
    }
    let port = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, host)| host);
    let port = port.rsplit_once(']').map_or(port, |(_, port)| port).split_once(':').map(|(_, port)| port);
    if authority.host().is_empty() || port.is_some_and(|port| !port.is_empty() && authority.port_u16().is_none()) {
        return refused("it has to have a host, and a port up to 65535");
    }
    if !is_whole && url.path() != "/" {
        return refused("a path needs a scheme in front of the host");
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_what_client_go_makes_of_it() {
        let cases = [
            ("https://10.0.0.1:6443", Ok("https://10.0.0.1:6443/")),
            ("HTTPS://a.test/", Ok("https://a.test/")),
            ("https://a.test//", Ok("https://a.test//")),
            ("https://a.test/k8s/clusters/c-1/", Ok("https://a.test/k8s/clusters/c-1/")),
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
            ("https://a b", Err("it has to be a URL")),
            (" https://a.test", Err("it has to be a URL")),
            ("unix:///run/api.sock", Err("e.g. https://10.0.0.1:6443")),
            ("https://", Err("e.g. https://10.0.0.1:6443")),
            ("", Err("it has to be a URL")),
        ];
        for (text, wanted) in cases {
            match (url(text), wanted) {
                (Ok(url), Ok(wanted)) => assert_eq!(url.to_string(), wanted, "{text:?}"),
                (Err(reason), Err(wanted)) => assert!(reason.contains(wanted), "{text:?}: {reason}"),
                (found, wanted) => panic!("{text:?}: {found:?}, and not {wanted:?}"),
            }
        }
    }
}
