//! Authentication and authorization of requests to the dashboard.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{CONTENT_TYPE, COOKIE, ORIGIN},
};

use crate::admin::keys::Keys;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// A header that forms cannot send, and that scripts of other origins can send only after a CORS preflight.
const FROM_THE_PAGE: HeaderName = HeaderName::from_static("x-adit");

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("not signed in: run 'adit ui'")]
    NotSignedIn,
    #[error("this is for the dashboard's own page")]
    OtherPage,
    #[error("a change needs Content-Type: application/json and the header X-Adit")]
    NoChange,
}

/// The sender of a request.
pub struct Visitor<'r> {
    pub headers: &'r HeaderMap,
    /// Authority as the client wrote it.
    pub authority: &'r str,
    pub tls: bool,
    /// Port of the listener.
    pub port: u16,
}

impl Visitor<'_> {
    /// Returns whether the cookie holds the token.
    pub fn is_signed_in(&self, keys: &Keys) -> bool {
        let name = self.cookie_name();
        let cookies = self.headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
        let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.any(|(key, value)| key == name && keys.is_token(value))
    }

    /// Returns the cookie that signs a browser in until the browser ends.
    pub fn cookie(&self, keys: &Keys) -> HeaderValue {
        let secure = if self.tls { "; Secure" } else { "" };
        let cookie = format!("{}={}; HttpOnly; SameSite=Strict; Path=/{secure}", self.cookie_name(), keys.token());
        HeaderValue::try_from(cookie).expect("digits and our own words are a header's value")
    }

    /// Returns the name of the cookie. Cookies ignore ports, so each adit has its own name.
    fn cookie_name(&self) -> String {
        format!("adit-{}", self.port)
    }

    /// Checks whether a request for data is allowed.
    ///
    /// # Errors
    /// The request is not allowed.
    pub fn check(&self, method: &Method, keys: &Keys) -> Result<(), Refused> {
        // First the checks without the secret: other pages must not learn whether the browser is signed in.
        if self.site().is_some_and(|site| site != "same-origin") || !self.origins().all(|origin| self.is_own(origin)) {
            return Err(Refused::OtherPage);
        }
        if !self.is_signed_in(keys) {
            return Err(Refused::NotSignedIn);
        }
        if matches!(*method, Method::GET | Method::HEAD) {
            return Ok(());
        }
        if self.origins().next().is_none() {
            return Err(Refused::OtherPage);
        }
        let kind = self.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let is_json = kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        if !is_json || !self.headers.contains_key(FROM_THE_PAGE) {
            return Err(Refused::NoChange);
        }
        Ok(())
    }

    /// Returns whether a page of another origin led here. The browser then does not send `SameSite=Strict` cookies.
    pub fn comes_from_elsewhere(&self) -> bool {
        self.site().is_some_and(|site| matches!(site, "cross-site" | "same-site"))
    }

    fn site(&self) -> Option<&str> {
        self.headers.get(SEC_FETCH_SITE).map(|site| site.to_str().unwrap_or_default())
    }

    fn origins(&self) -> impl Iterator<Item = &HeaderValue> {
        self.headers.get_all(ORIGIN).iter()
    }

    fn is_own(&self, origin: &HeaderValue) -> bool {
        let scheme = if self.tls { "https" } else { "http" };
        *origin == format!("{scheme}://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "http://adit.localhost:8989";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| (HeaderName::from_static(name), value.parse().unwrap());
        pairs.iter().map(pair).collect()
    }

    fn check(method: &Method, keys: &Keys, pairs: &[(&'static str, &str)]) -> Result<(), Refused> {
        let headers = headers(pairs);
        Visitor { headers: &headers, authority: "adit.localhost:8989", tls: false, port: 8989 }.check(method, keys)
    }

    #[test]
    fn data_is_for_the_page_that_is_signed_in() {
        let keys = Keys::new().unwrap();
        let cookie = format!("other=1; adit-8989={}", keys.token());
        let cookie = ("cookie", cookie.as_str());
        assert_eq!(check(&Method::GET, &keys, &[cookie]), Ok(()));
        assert_eq!(check(&Method::GET, &keys, &[cookie, ("sec-fetch-site", "same-origin")]), Ok(()));
        for site in ["cross-site", "same-site", "none", "x"] {
            let found = check(&Method::GET, &keys, &[cookie, ("sec-fetch-site", site)]);
            assert_eq!(found, Err(Refused::OtherPage), "{site}");
        }
        let own = [cookie, ("origin", OWN)];
        assert_eq!(check(&Method::GET, &keys, &own), Ok(()));
        for origin in ["http://localhost:8989", "https://adit.localhost:8989", "http://adit.localhost", "null", ""] {
            let found = check(&Method::GET, &keys, &[cookie, ("origin", origin)]);
            assert_eq!(found, Err(Refused::OtherPage), "{origin}");
        }
        let two = [cookie, ("origin", OWN), ("origin", "http://evil.localhost:8989")];
        assert_eq!(check(&Method::GET, &keys, &two), Err(Refused::OtherPage));
        for wrong in ["", "adit-8989=", "adit-8989=x", "adit-8990=TOKEN", "adit-8989 =TOKEN"] {
            let wrong = wrong.replace("TOKEN", keys.token());
            assert_eq!(check(&Method::GET, &keys, &[("cookie", &wrong)]), Err(Refused::NotSignedIn), "{wrong}");
        }
    }

    #[test]
    fn changes_need_what_no_form_can_send() {
        let keys = Keys::new().unwrap();
        let cookie = format!("adit-8989={}", keys.token());
        let all = [("cookie", cookie.as_str()), ("origin", OWN), ("content-type", "application/json"), ("x-adit", "1")];
        assert_eq!(check(&Method::POST, &keys, &all), Ok(()));
        for left_out in 0..all.len() {
            let some: Vec<_> =
                all.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, pair)| *pair).collect();
            assert!(check(&Method::POST, &keys, &some).is_err(), "without {}", all[left_out].0);
        }
        let form = all.map(|(name, value)| (name, if name == "content-type" { "text/plain" } else { value }));
        assert_eq!(check(&Method::POST, &keys, &form), Err(Refused::NoChange));
    }

    #[test]
    fn two_adits_have_cookies_of_their_own() {
        let (first, second) = (Keys::new().unwrap(), Keys::new().unwrap());
        let both = format!("adit-8989={}; adit-9000={}", first.token(), second.token());
        let headers = headers(&[("cookie", &both)]);
        let visitor = |port| Visitor { headers: &headers, authority: "adit.localhost", tls: true, port };
        assert!(visitor(8989).is_signed_in(&first) && visitor(9000).is_signed_in(&second));
        assert!(!visitor(9000).is_signed_in(&first) && !visitor(8989).is_signed_in(&second));
        let cookie = visitor(8989).cookie(&first);
        assert!(cookie.to_str().unwrap().ends_with("; HttpOnly; SameSite=Strict; Path=/; Secure"), "{cookie:?}");
    }
}
