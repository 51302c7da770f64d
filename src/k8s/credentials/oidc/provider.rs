//! Requests to an OpenID Connect provider.
//!
//! | | request | answer |
//! |---|---|---|
//! | discovery (OpenID Connect Discovery 1.0, section 4) | `GET ISSUER/.well-known/openid-configuration` | JSON with `token_endpoint` |
//! | renewal (RFC 6749, section 6) | `POST` of a form: `grant_type=refresh_token`, `refresh_token` | JSON, or a form: `access_token`, `id_token`, maybe a new `refresh_token` |
//!
//! As in Go's oauth2, a client with a secret sends it in the Authorization header first, then in the form. A public
//! client, which has no secret, sends its id in the form first.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, LOCATION, USER_AGENT},
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::rt::TokioExecutor;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rustls::{CertificateError, ClientConfig};
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    k8s::{
        credential::basic,
        dial::Dialer,
        proxy::{self, Environment},
        reach,
    },
    printable::printable,
    tls::{bundle::Bundle, system},
};

/// Timeout of one answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Maximum length of an answer, in bytes.
const LONGEST_ANSWER: usize = 1 << 20;

const MOST_REDIRECTS: usize = 5;

/// Bytes to escape in a form. A space may be `%20`.
const NOT_IN_FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Client of a provider.
pub struct Client {
    pub id: String,
    /// Empty: a public client.
    pub secret: String,
    /// `None`: the system's CA bundle.
    pub bundle: Option<Arc<Bundle>>,
}

/// Tokens from a renewal.
#[derive(Debug, PartialEq, Eq)]
pub struct Tokens {
    pub id_token: String,
    /// `None`: the old one stays valid.
    pub refresh_token: Option<String>,
}

/// Client authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    Header,
    Form,
}

struct Answer {
    status: StatusCode,
    is_form: bool,
    body: Bytes,
}

impl Client {
    /// Renews the tokens.
    ///
    /// # Errors
    /// Returns the reason as text that follows the provider's name.
    pub async fn renew(&self, issuer: &str, refresh_token: &str) -> Result<Tokens, String> {
        let discovery = format!("{}/.well-known/openid-configuration", issuer.strip_suffix('/').unwrap_or(issuer));
        let answer = self.ask(Method::GET, &discovery, None, None).await?;
        let endpoint = token_endpoint(&answer)?;
        let proofs = match self.secret.is_empty() {
            true => [Proof::Form, Proof::Header],
            false => [Proof::Header, Proof::Form],
        };
        let mut refusal = String::new();
        for proof in proofs {
            let form = self.form(refresh_token, proof);
            let authorization = match proof {
                Proof::Header => basic(&encoded(&self.id), &encoded(&self.secret)),
                Proof::Form => None,
            };
            let answer = self.ask(Method::POST, &endpoint, authorization, Some(form)).await?;
            match tokens(&answer) {
                Ok(tokens) => return Ok(tokens),
                // Only a refused request may be due to the client authentication, and is worth a retry.
                Err(reason) if answer.status.is_success() => return Err(reason),
                Err(reason) if refusal.is_empty() => refusal = reason,
                Err(_) => {}
            }
        }
        Err(refusal)
    }

    fn form(&self, refresh_token: &str, proof: Proof) -> String {
        let mut form = format!("grant_type=refresh_token&refresh_token={}", encoded(refresh_token));
        if proof == Proof::Form {
            form += &format!("&client_id={}", encoded(&self.id));
            if !self.secret.is_empty() {
                form += &format!("&client_secret={}", encoded(&self.secret));
            }
        }
        form
    }

    async fn ask(
        &self,
        mut method: Method,
        url: &str,
        mut authorization: Option<HeaderValue>,
        mut form: Option<String>,
    ) -> Result<Answer, String> {
        let mut uri = of_http(url)?;
        for _ in 0..=MOST_REDIRECTS {
            let mut request = Request::new(Full::new(Bytes::from(form.clone().unwrap_or_default())));
            *request.method_mut() = method.clone();
            *request.uri_mut() = uri.clone();
            let headers = request.headers_mut();
            headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
            headers.insert(USER_AGENT, HeaderValue::from_static(concat!("adit/", env!("CARGO_PKG_VERSION"))));
            if form.is_some() {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            }
            headers.extend(authorization.clone().map(|value| (AUTHORIZATION, value)));
            let late = || format!("did not answer within {} s", PATIENCE.as_secs());
            let (answer, location) = timeout(PATIENCE, self.send(request)).await.map_err(|_| late())??;
            let Some(location) = location.filter(|_| answer.status.is_redirection()) else { return Ok(answer) };
            // RFC 9110, section 15.4: only these two keep the method.
            let keeps = matches!(answer.status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
            if method == Method::POST && !keeps {
                (method, form, authorization) = (Method::GET, None, None);
            }
            let before = uri;
            uri = next(&before, &location)?;
            let is_plain = uri.scheme_str() == Some("http") && before.scheme() != uri.scheme();
            if form.is_some() && (is_plain || before.authority() != uri.authority()) {
                let to = if is_plain { "an unencrypted connection" } else { "another host" };
                return Err(format!("sends renewals on to {to}, {}", printable(&location)));
            }
        }
        Err("redirects in a circle".to_owned())
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<(Answer, Option<String>), String> {
        let uri = request.uri().clone();
        let tls = self.tls();
        let proxy = Environment::of_process().proxy_for(&uri);
        let dialer = Dialer::new(proxy.as_ref(), &tls).map_err(|reason| format!("cannot be reached: {reason}"))?;
        let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let client =
            hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https.wrap_connector(dialer));
        let proxy = proxy.as_ref().map(proxy::without_credentials);
        let answer = client
            .request(request)
            .await
            .map_err(|error| format!("cannot be reached: {}", words(&error, &uri, proxy.as_deref())))?;
        let (head, body) = answer.into_parts();
        let read = Limited::new(body, LONGEST_ANSWER).collect().await;
        let body = read.map_err(|_| "broke its answer off, or it is longer than 1 MiB".to_owned())?.to_bytes();
        let text = |name| head.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let kind = text(&CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
        let is_form = matches!(kind.as_str(), "application/x-www-form-urlencoded" | "text/plain");
        Ok((Answer { status: head.status, is_form, body }, text(&LOCATION).map(str::to_owned)))
    }

    fn tls(&self) -> ClientConfig {
        let provider = crate::tls::provider();
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the versions of TLS that rustls has");
        let bundle = self.bundle.clone().unwrap_or_else(|| Arc::new(system::bundle(&crate::tls::provider())));
        builder.dangerous().with_custom_certificate_verifier(bundle).with_no_client_auth()
    }
}

/// Parses a URL.
fn of_http(url: &str) -> Result<Uri, String> {
    let parsed: Option<Uri> = url.parse().ok();
    let is_http = |uri: &Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
    parsed.filter(is_http).ok_or_else(|| format!("has the URL {url:?}: it has to begin with https://HOST"))
}

/// Returns the target of a redirect.
fn next(from: &Uri, location: &str) -> Result<Uri, String> {
    if location.starts_with('/') && !location.starts_with("//") {
        let authority = from.authority().map(|authority| authority.as_str()).unwrap_or_default();
        return of_http(&format!("{}://{authority}{location}", from.scheme_str().unwrap_or("https")));
    }
    of_http(location)
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NOT_IN_FORM).to_string()
}

fn token_endpoint(answer: &Answer) -> Result<String, String> {
    if answer.status != StatusCode::OK {
        return Err(format!(
            "answers {} to the discovery of OpenID Connect: check idp-issuer-url",
            answer.status.as_u16()
        ));
    }
    let document: Value = serde_json::from_slice(&answer.body)
        .map_err(|_| "answers the discovery of OpenID Connect with no JSON: check idp-issuer-url".to_owned())?;
    let endpoint = document["token_endpoint"].as_str().filter(|url| !url.is_empty());
    endpoint.map(str::to_owned).ok_or_else(|| "names no token_endpoint".to_owned())
}

/// Parses the answer to a renewal.
fn tokens(answer: &Answer) -> Result<Tokens, String> {
    let object: Value = match answer.is_form {
        true => Value::Object(pairs(&answer.body).map(|(key, value)| (key, value.into())).collect()),
        false => serde_json::from_slice(&answer.body).unwrap_or_default(),
    };
    let text = |key: &str| object[key].as_str().filter(|text| !text.is_empty());
    if let Some(error) = text("error") {
        let more = text("error_description").map(|more| format!(": {more}")).unwrap_or_default();
        return Err(format!("does not renew the id-token: {}", printable(&format!("{error}{more}"))));
    }
    if !answer.status.is_success() {
        return Err(format!("does not renew the id-token: it answers {}", answer.status.as_u16()));
    }
    if text("access_token").is_none() {
        return Err("answered a renewal without an access_token".to_owned());
    }
    let Some(id_token) = text("id_token") else {
        return Err("renews no id-token: sign in with the scope openid, or with a provider that renews it".to_owned());
    };
    Ok(Tokens { id_token: id_token.to_owned(), refresh_token: text("refresh_token").map(str::to_owned) })
}

/// Parses the keys and values of a form.
fn pairs(form: &[u8]) -> impl Iterator<Item = (String, String)> {
    let form = String::from_utf8_lossy(form).into_owned();
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs: Vec<_> = form
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect();
    pairs.into_iter()
}

/// Returns why a provider could not be reached.
fn words(error: &(dyn std::error::Error + 'static), uri: &Uri, proxy: Option<&str>) -> String {
    let untrusted = |error: &rustls::Error| {
        use CertificateError::{BadSignature, UnknownIssuer};
        matches!(error, rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature))
    };
    match reach::tls_error(error) {
        Some(error) if untrusted(error) => {
            "its certificate is not signed by the CA bundle of idp-certificate-authority, or, where there is none, of \
             this machine"
                .to_owned()
        }
        _ => reach::reason(error, uri, proxy),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::mpsc,
    };

    use super::*;

    /// A server that sends these answers, one per connection. Returns its URL, and the heads of the requests.
    async fn server(answers: impl FnOnce(&str) -> Vec<String>) -> (String, mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers = answers(&url);
        let (heads_tx, heads_rx) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for answer in answers {
                let (mut io, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(io.read_u8().await.unwrap());
                }
                heads_tx.send(String::from_utf8(head).unwrap().to_lowercase()).unwrap();
                io.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        (url, heads_rx)
    }

    #[tokio::test]
    async fn a_redirect_does_not_pass_on_the_client_secret() {
        let refused = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let (other, mut heads) = server(|_| vec![refused.to_owned(); 2]).await;
        let moved =
            format!("HTTP/1.1 302 Found\r\nLocation: {other}/login\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let (issuer, mut asked) = server(|url| {
            let document = format!("{{\"token_endpoint\": \"{url}/token\"}}");
            let length = document.len();
            let discovered =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{document}");
            vec![discovered, moved.clone(), moved]
        })
        .await;
        let client = Client { id: "c".into(), secret: "s".into(), bundle: None };
        client.renew(&issuer, "r").await.unwrap_err();
        asked.recv().await.unwrap();
        assert!(asked.recv().await.unwrap().contains("authorization: basic"));
        assert!(!heads.recv().await.unwrap().contains("authorization"));
    }

    fn answer(status: u16, is_form: bool, body: &str) -> Answer {
        Answer { status: StatusCode::from_u16(status).unwrap(), is_form, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    #[test]
    fn tokens_are_read_from_json_and_forms() {
        let json = answer(200, false, "{\"access_token\": \"a\", \"id_token\": \"i\", \"refresh_token\": \"\"}");
        assert_eq!(tokens(&json), Ok(Tokens { id_token: "i".into(), refresh_token: None }));
        let form = answer(200, true, "access_token=a&id_token=i%2E1+x&refresh_token=r");
        assert_eq!(tokens(&form), Ok(Tokens { id_token: "i.1 x".into(), refresh_token: Some("r".into()) }));
    }

    #[test]
    fn refusals_say_why() {
        for (answer, wanted) in [
            (
                answer(400, false, "{\"error\": \"invalid_grant\", \"error_description\": \"used\\u001b twice\"}"),
                "does not renew the id-token: invalid_grant: used  twice",
            ),
            (answer(200, false, "{\"error\": \"slow_down\"}"), "does not renew the id-token: slow_down"),
            (answer(401, false, "<html>"), "does not renew the id-token: it answers 401"),
            (answer(200, false, "[]"), "answered a renewal without an access_token"),
            (answer(200, false, "{\"access_token\": \"a\"}"), "renews no id-token: sign in with the scope openid, or"),
        ] {
            assert!(tokens(&answer).unwrap_err().starts_with(wanted), "{:?}", tokens(&answer));
        }
        let discovered = |status, body| token_endpoint(&answer(status, false, body));
        assert_eq!(discovered(200, "{\"token_endpoint\": \"https://a/t\"}").unwrap(), "https://a/t");
        assert!(discovered(404, "{}").unwrap_err().starts_with("answers 404"));
        assert!(discovered(200, "<html>").unwrap_err().contains("no JSON"));
        assert_eq!(discovered(200, "{}").unwrap_err(), "names no token_endpoint");
    }

    #[test]
    fn a_client_with_a_secret_escapes_it() {
        let client = Client { id: "a b".into(), secret: "s&c".into(), bundle: None };
        assert_eq!(client.form("r+1", Proof::Header), "grant_type=refresh_token&refresh_token=r%2B1");
        assert!(client.form("r", Proof::Form).ends_with("&client_id=a%20b&client_secret=s%26c"));
    }

    #[test]
    fn redirects_lead_to_hosts() {
        let from = Uri::from_static("https://idp:8443/a?b");
        assert_eq!(next(&from, "/x").unwrap(), "https://idp:8443/x");
        assert_eq!(next(&from, "https://b/").unwrap(), "https://b/");
        for odd in ["ftp://b/", "x", "//b/x", "", "https://"] {
            assert!(next(&from, odd).is_err(), "{odd}");
        }
    }
}
