//! Names in both directions: the backend's own in the request, the client's in redirects and cookies of the answer.

use http::{
    HeaderMap, HeaderName, HeaderValue, Uri,
    header::{CONTENT_LOCATION, HOST, LOCATION, SET_COOKIE},
};

use crate::{
    config::{Jump, Scheme, Workload},
    routing::{PodTarget, table},
};

/// What a backend is called, by itself and by others.
pub struct Names {
    /// The name that it is sent as Host, with a port where it is not the scheme's own.
    own: String,
    /// Lower case, without ports.
    all: Vec<String>,
}

impl Names {
    /// `port`: of the Service, or of the target of a jump.
    pub fn of(target: &PodTarget, scheme: Scheme, port: u16, server_name: Option<&str>) -> Self {
        let namespace = &target.namespace;
        let mut all: Vec<String> = server_name.iter().map(|name| (*name).to_owned()).collect();
        match (&target.jump, &target.workload) {
            (Some(Jump { host, .. }), _) => all.push(host.to_ascii_lowercase()),
            (None, Workload::Service(service)) => {
                let short = format!("{service}.{namespace}");
                all.extend([format!("{short}.svc.cluster.local"), format!("{short}.svc"), short, service.clone()]);
            }
            (None, Workload::PodOfService { pod, service }) => {
                all.push(format!("{pod}.{service}.{namespace}.svc.cluster.local"));
                all.push(pod.clone());
            }
            (None, Workload::Pod(pod)) => all.push(pod.clone()),
        }
        let host = if all[0].contains(':') { format!("[{}]", all[0]) } else { all[0].clone() };
        let default = if scheme == Scheme::Https { 443 } else { 80 };
        Self { own: if port == default { host } else { format!("{host}:{port}") }, all }
    }

    /// Puts the backend's own name into a request.
    pub fn into_request(&self, headers: &mut HeaderMap) {
        if let Ok(host) = HeaderValue::from_str(&self.own) {
            headers.insert(HOST, host);
        }
    }

    fn are(&self, host: &str) -> bool {
        self.all.iter().any(|name| name == host)
    }

    /// Leads what a browser would follow back to the name that it used.
    ///
    /// `client`: the authority that was asked for, `tls`: by https. A redirect to somebody else stays as it is.
    pub fn out_of_response(&self, headers: &mut HeaderMap, client: &str, tls: bool) {
        for name in [LOCATION, CONTENT_LOCATION, HeaderName::from_static("refresh")] {
            let Some(value) = headers.get(&name).and_then(|value| value.to_str().ok()) else { continue };
            let (before, url) = match name.as_str() {
                "refresh" => match value.to_ascii_lowercase().find("url=") {
                    Some(at) => value.split_at(at + "url=".len()),
                    None => continue,
                },
                _ => value.split_at(0),
            };
            if let Some(url) = self.lead_back(url, client, tls)
                && let Ok(value) = HeaderValue::from_str(&format!("{before}{url}"))
            {
                headers.insert(name, value);
            }
        }
        let cookies: Vec<HeaderValue> = headers.get_all(SET_COOKIE).iter().cloned().collect();
        if cookies.is_empty() {
            return;
        }
        headers.remove(SET_COOKIE);
        let client = table::normalise(client);
        for cookie in cookies {
            headers.append(SET_COOKIE, without_foreign_domain(&cookie, &client).unwrap_or(cookie));
        }
    }

    /// Returns an absolute URL of one of the backend's names, or of the client's with another scheme or port, as one that
    /// leads to where the client is.
    fn lead_back(&self, url: &str, client: &str, tls: bool) -> Option<String> {
        let (scheme, rest) = url.split_once("//")?;
        if !matches!(scheme.to_ascii_lowercase().as_str(), "" | "http:" | "https:") {
            return None;
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let host = table::normalise(authority.parse::<Uri>().ok()?.authority()?.as_str());
        (self.are(&host) || host == table::normalise(client))
            .then(|| format!("{}://{client}{path}", if tls { "https" } else { "http" }))
    }
}

/// Returns a cookie without a Domain that the client's host does not lie in: it belongs to that host alone then. None: it
/// stays as it is.
fn without_foreign_domain(cookie: &HeaderValue, client: &str) -> Option<HeaderValue> {
    let text = cookie.to_str().ok()?;
    let is_foreign = |attribute: &&str| {
        let Some((name, domain)) = attribute.split_once('=') else { return false };
        let domain = domain.trim().trim_start_matches('.').to_ascii_lowercase();
        let lies_in = client == domain || client.strip_suffix(&domain).is_some_and(|rest| rest.ends_with('.'));
        name.trim().eq_ignore_ascii_case("domain") && !lies_in
    };
    let mut parts = text.split(';');
    let first = parts.next()?;
    let kept: Vec<&str> = parts.clone().filter(|part| !is_foreign(part)).collect();
    if kept.len() == parts.count() {
        return None;
    }
    HeaderValue::from_str(&[&[first], &kept[..]].concat().join(";")).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        config::{ContextName, Namespace, PortRef},
        routing::ClusterId,
    };

    fn names() -> Names {
        let target = PodTarget {
            cluster: ClusterId { kubeconfig: Arc::default(), context: ContextName("dev".into()) },
            namespace: Namespace("shop".into()),
            workload: Workload::Service("web".into()),
            port: PortRef::Auto,
            jump: None,
        };
        Names::of(&target, Scheme::Http, 8080, None)
    }

    #[test]
    fn the_backend_gets_its_own_name() {
        let mut headers = HeaderMap::new();
        names().into_request(&mut headers);
        assert_eq!(headers[HOST], "web.shop.svc.cluster.local:8080");
    }

    #[test]
    fn redirects_lead_back_to_where_the_client_is() {
        let led = |url: &str| {
            let mut headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_str(url).unwrap())]);
            names().out_of_response(&mut headers, "web.localhost:8989", false);
            headers[LOCATION].to_str().unwrap().to_owned()
        };
        assert_eq!(led("http://web.shop.svc.cluster.local:8080/a?b#c"), "http://web.localhost:8989/a?b#c");
        assert_eq!(led("https://web.shop/"), "http://web.localhost:8989/");
        assert_eq!(led("//web.shop.svc/x"), "http://web.localhost:8989/x");
        assert_eq!(led("https://web.localhost/x"), "http://web.localhost:8989/x");
        for other in ["/x", "x", "https://login.example.com/?next=http://web.shop/", "mailto:a@web.shop"] {
            assert_eq!(led(other), other);
        }
        let mut headers = HeaderMap::from_iter([(
            HeaderName::from_static("refresh"),
            HeaderValue::from_static("0; url=http://web.shop.svc/next"),
        )]);
        names().out_of_response(&mut headers, "web.localhost:8989", true);
        assert_eq!(headers["refresh"], "0; url=https://web.localhost:8989/next");
    }

    #[test]
    fn cookies_stay_with_the_client() {
        let cookies = ["a=1; Path=/; Domain=web.shop.svc; HttpOnly", "b=2; domain=localhost", "c=3"];
        let mut headers: HeaderMap =
            cookies.iter().map(|cookie| (SET_COOKIE, HeaderValue::from_static(cookie))).collect();
        names().out_of_response(&mut headers, "web.localhost:8989", false);
        let left: Vec<_> = headers.get_all(SET_COOKIE).iter().map(|cookie| cookie.to_str().unwrap()).collect();
        assert_eq!(left, ["a=1; Path=/; HttpOnly", "b=2; domain=localhost", "c=3"]);
    }
}
