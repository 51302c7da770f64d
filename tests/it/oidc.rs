//! The legacy OIDC sign-in of kubeconfigs, compared with kubectl: a small provider, and files whose tokens adit renews.

use std::{
    collections::HashSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    slice::from_ref,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use adit::{app::App, demo::Demo};
use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::kubeconfigs::{
    Oracle,
    Verdict::{self, Refused, Works},
    with_user,
};
use crate::support::{TestApp, start_demo};

/// An OIDC provider. The first part of the path is the issuer, and chooses the behaviour.
struct Idp {
    address: SocketAddr,
    secure: SocketAddr,
    certificate: String,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Demo cluster that accepts the issued tokens.
    demo: Option<Arc<Demo>>,
    /// Tokens to issue before any others, the last one first.
    prepared: Mutex<Vec<String>>,
    used: Mutex<HashSet<String>>,
    /// `METHOD path`, and for a renewal how the client authenticated.
    log: Mutex<Vec<String>>,
}

/// Returns a token that expires in this many seconds.
fn token(seconds: i64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let expires = now.as_secs().checked_add_signed(seconds).unwrap();
    let part = |text: String| URL_SAFE_NO_PAD.encode(text);
    // Every token is unique.
    format!(
        "{}.{}.{}",
        part("{}".to_owned()),
        part(json!({ "exp": expires }).to_string()),
        part(now.as_nanos().to_string())
    )
}

impl Idp {
    async fn start(demo: Option<Arc<Demo>>) -> Self {
        let state = Arc::new(State { demo, ..State::default() });
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        let certificate = params.self_signed(&key).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from(certificate.der().to_vec())],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let (plain, secure) = (bind().await, bind().await);
        let idp = Self {
            address: plain.local_addr().unwrap(),
            secure: secure.local_addr().unwrap(),
            certificate: STANDARD.encode(certificate.pem()),
            state: state.clone(),
        };
        tokio::spawn(serve(plain, None, state.clone()));
        tokio::spawn(serve(secure, Some(TlsAcceptor::from(Arc::new(config))), state));
        idp
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.log.lock().unwrap())
    }

    fn renewals(&self) -> usize {
        self.log().iter().filter(|line| line.starts_with("POST")).count()
    }

    /// Returns a user with an issuer of this behaviour, and these other settings.
    fn user(&self, way: &str, settings: &[(&str, &str)]) -> String {
        let issuer = format!("http://{}/{way}", self.address);
        let mut config = serde_json::Map::new();
        for (key, value) in [("idp-issuer-url", issuer.as_str()), ("client-id", "cli")].iter().chain(settings) {
            config.insert((*key).to_owned(), (*value).into());
        }
        json!({"auth-provider": {"name": "oidc", "config": config}}).to_string()
    }
}

async fn bind() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap()
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<State>) {
    let is_secure = tls.is_some();
    let address = listener.local_addr().unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, state) = (tls.clone(), state.clone());
        let base = format!("{}://{address}", if is_secure { "https" } else { "http" });
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (state, base) = (state.clone(), base.clone());
                async move { Ok::<_, std::convert::Infallible>(state.answer(request, &base).await) }
            });
            match tls {
                Some(tls) => {
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                }
                None => drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await),
            }
        });
    }
}

fn respond(status: u16, kind: &str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert(header::CONTENT_TYPE, kind.parse().unwrap());
    response
}

impl State {
    async fn answer(&self, request: Request<Incoming>, base: &str) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let way = path.split('/').nth(1).unwrap_or_default().to_owned();
        let proof = head.headers.get(header::AUTHORIZATION).map_or("", |value| value.to_str().unwrap()).to_owned();
        let form = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        self.log.lock().unwrap().push(format!("{} {path} {proof} {form}", head.method).trim().to_owned());
        if path.ends_with("/.well-known/openid-configuration") {
            return match way.as_str() {
                "nowhere" => respond(404, "text/html", "<html>".to_owned()),
                "endless" => respond(200, "application/json", "{}".to_owned()),
                "moved" => {
                    let mut moved = respond(302, "text/plain", String::new());
                    let to = "/good/.well-known/openid-configuration".parse().unwrap();
                    moved.headers_mut().insert(header::LOCATION, to);
                    moved
                }
                _ => {
                    let endpoint = format!("{base}/{way}/token");
                    respond(200, "application/json", json!({"issuer": base, "token_endpoint": endpoint}).to_string())
                }
            };
        }
        if head.method != Method::POST {
            return respond(405, "text/plain", String::new());
        }
        let refusal = |error: &str| respond(400, "application/json", json!({ "error": error }).to_string());
        let secret = STANDARD.encode("cli:s%26c");
        let is_client = match way.as_str() {
            "header" => proof == format!("Basic {secret}") && !form.contains("client_"),
            "form" => proof.is_empty() && form.contains("client_id=cli&client_secret=s%26c"),
            "public" => proof.is_empty() && form.contains("client_id=cli") && !form.contains("secret"),
            _ => true,
        };
        if !is_client {
            return refusal("invalid_client");
        }
        let refresh = form.split('&').find_map(|pair| pair.strip_prefix("refresh_token=")).unwrap_or_default();
        if refresh == "wrong" || !form.contains("grant_type=refresh_token") {
            return refusal("invalid_grant");
        }
        if way == "rotates" && !self.used.lock().unwrap().insert(refresh.to_owned()) {
            return refusal("invalid_grant");
        }
        let prepared = self.prepared.lock().unwrap().pop();
        let id_token = prepared.unwrap_or_else(|| token(if way == "late" { 3 } else { 3600 }));
        if let Some(demo) = &self.demo {
            demo.faults().accept_token(&id_token);
        }
        let answer = json!({"access_token": "a", "token_type": "Bearer", "id_token": id_token});
        let with = |key: &str, value: &str| {
            let mut answer = answer.clone();
            answer[key] = value.into();
            respond(200, "application/json", answer.to_string())
        };
        match way.as_str() {
            "rotates" => with("refresh_token", &format!("{refresh}n")),
            "none" => with("id_token", ""),
            "no-access" => with("access_token", ""),
            "odd" => with("id_token", "abc"),
            "forms" => {
                let kind = "application/x-www-form-urlencoded";
                respond(200, kind, format!("access_token=a&token_type=Bearer&id_token={id_token}"))
            }
            _ => respond(200, "application/json", answer.to_string()),
        }
    }
}

#[tokio::test]
async fn an_oidc_user_means_what_it_means_for_kubectl() {
    let oracle = Oracle::start().await;
    let idp = Idp::start(Some(oracle.demo.clone())).await;
    let (valid, late, expired, foreign) = (token(3600), token(5), token(-60), token(3600));
    for token in [&valid, &late, &expired] {
        oracle.demo.faults().accept_token(token);
    }
    let secure = format!("https://{}/good", idp.secure);
    let pem = STANDARD.decode(&idp.certificate).unwrap();
    let file = oracle.write("idp.crt", &pem);
    let file = file.to_str().unwrap();
    let r = ("refresh-token", "r");
    let secret = ("client-secret", "s&c");
    let old = ("id-token", expired.as_str());
    let good = |settings: &[(&str, &str)]| idp.user("good", settings);
    let cases: Vec<(&str, String, Verdict, usize)> = vec![
        ("valid", good(&[("id-token", &valid)]), Works, 0),
        ("valid, and the provider is nowhere", idp.user("nowhere", &[("id-token", &valid), r]), Works, 0),
        ("valid, and refused", good(&[("id-token", &foreign)]), Refused("no refresh-token"), 0),
        ("no token", good(&[]), Refused("there is no refresh-token"), 0),
        ("expired, nothing to renew it with", good(&[old]), Refused("has expired, and there is no refresh-token"), 0),
        ("an empty refresh token", good(&[old, ("refresh-token", "")]), Refused("no refresh-token"), 0),
        ("no token yet", good(&[r]), Works, 1),
        ("an empty token", good(&[("id-token", ""), r]), Works, 1),
        ("expired", good(&[old, r]), Works, 1),
        ("about to expire", good(&[("id-token", &late), r]), Works, 1),
        ("no token at all", good(&[("id-token", "abc"), r]), Refused("is not a JSON Web Token"), 0),
        ("a secret, in the header", idp.user("header", &[old, r, secret]), Works, 1),
        ("a secret, in the form", idp.user("form", &[old, r, secret]), Works, 2),
        ("another secret", idp.user("header", &[old, r, ("client-secret", "x")]), Refused("invalid_client"), 2),
        ("a public client", idp.user("public", &[old, r]), Works, 1),
        ("an empty secret", idp.user("public", &[old, r, ("client-secret", "")]), Works, 1),
        ("rotates", idp.user("rotates", &[old, ("refresh-token", "r1")]), Works, 1),
        ("a refresh token that is refused", good(&[old, ("refresh-token", "wrong")]), Refused("invalid_grant"), 2),
        ("the issuer ends with a slash", idp.user("good/", &[old, r]), Works, 1),
        ("the discovery has moved", idp.user("moved", &[old, r]), Works, 1),
        ("no discovery", idp.user("nowhere", &[old, r]), Refused("answers 404 to the discovery"), 0),
        ("no endpoint", idp.user("endless", &[old, r]), Refused("names no token_endpoint"), 0),
        ("an answer as a form", idp.user("forms", &[old, r]), Works, 1),
        ("no id-token", idp.user("none", &[old, r]), Refused("renews no id-token"), 1),
        ("an odd id-token", idp.user("odd", &[old, r]), Refused("issued an id-token that is not a JSON Web Token"), 1),
        ("an id-token for 3 s", idp.user("late", &[old, r]), Works, 1),
        ("no access token", idp.user("no-access", &[old, r]), Refused("without an access_token"), 1),
        (
            "a provider of its own authority",
            good(&[("idp-issuer-url", &secure), old, r]),
            Refused("idp-certificate-authority"),
            0,
        ),
        (
            "its CA bundle",
            good(&[("idp-issuer-url", &secure), ("idp-certificate-authority-data", &idp.certificate), old, r]),
            Works,
            1,
        ),
        (
            "its CA bundle, in a file",
            good(&[("idp-issuer-url", &secure), ("idp-certificate-authority", file), old, r]),
            Works,
            1,
        ),
        (
            "a CA bundle that is missing",
            good(&[("idp-certificate-authority", "none.crt"), ("id-token", &valid)]),
            Refused("none.crt: no such file"),
            0,
        ),
        (
            "a CA bundle that is not valid base64",
            good(&[("idp-certificate-authority-data", "%"), ("id-token", &valid)]),
            Refused("is not valid base64"),
            0,
        ),
        ("no issuer", good(&[("idp-issuer-url", ""), ("id-token", &valid)]), Refused("no idp-issuer-url"), 0),
        ("no client", good(&[("client-id", ""), ("id-token", &valid)]), Refused("no client-id"), 0),
        (
            "an issuer without a scheme",
            good(&[("idp-issuer-url", "idp"), old, r]),
            Refused("has to begin with https://"),
            0,
        ),
        ("scopes", good(&[("extra-scopes", "groups"), old, r]), Works, 1),
        ("no settings", "{\"auth-provider\": {\"name\": \"oidc\"}}".to_owned(), Refused("no idp-issuer-url"), 0),
        (
            "another provider",
            "{\"auth-provider\": {\"name\": \"gcp\"}}".to_owned(),
            Refused("gke-gcloud-auth-plugin"),
            0,
        ),
        ("and another", "{\"auth-provider\": {\"name\": \"azure\"}}".to_owned(), Refused("kubelogin"), 0),
        ("no name", "{\"auth-provider\": {\"config\": {}}}".to_owned(), Refused("user \"u\" of"), 0),
        ("a token beside it", good(&[old]).replacen('{', "{\"token\": \"$TOKEN\", ", 1), Works, 0),
        (
            "a token beside another provider",
            "{\"token\": \"$TOKEN\", \"auth-provider\": {\"name\": \"gcp\"}}".to_owned(),
            Refused("gke-gcloud-auth-plugin"),
            0,
        ),
    ];
    for (case, user, verdict, renewals) in cases {
        let path = oracle.write("config", oracle.fill(&with_user(&user)).as_bytes());
        idp.log();
        oracle.judge_adit(case, from_ref(&path), &[], &verdict).await;
        assert_eq!(idp.renewals(), renewals, "{case}");
        // kubectl gets the same file as adit, or the one that adit has written.
        if renewals == 0 || case == "rotates" || !matches!(verdict, Works) {
            oracle.judge_kubectl(case, from_ref(&path), &[], &verdict).await;
            let is_kept = case == "rotates";
            assert!(!is_kept || idp.renewals() == 0, "{case}: kubectl uses what adit has written");
        } else {
            let written = fs::read_to_string(&path).unwrap();
            assert!(!written.contains(&expired) && written.contains("name: x"), "{case}: {written}");
            oracle.write("config", oracle.fill(&with_user(&user)).as_bytes());
            oracle.judge_kubectl(case, from_ref(&path), &[], &verdict).await;
        }
    }
}

fn kubeconfig(oracle: &Oracle, user: &str) -> std::path::PathBuf {
    oracle.write("config", oracle.fill(&with_user(user)).as_bytes())
}

#[tokio::test]
async fn a_rotated_refresh_token_is_written_back_and_nothing_else_changes() {
    let oracle = Oracle::start().await;
    let idp = Idp::start(Some(oracle.demo.clone())).await;
    let user = idp.user("rotates", &[("id-token", &token(-60)), ("refresh-token", "r")]);
    let path = kubeconfig(&oracle, &user);
    let text = format!("# mine\n{}", fs::read_to_string(&path).unwrap());
    fs::write(&path, &text).unwrap();
    for renewal in 1..3 {
        oracle.judge_adit("rotates", from_ref(&path), &[], &Works).await;
        assert_eq!(idp.renewals(), 1);
        let now = fs::read_to_string(&path).unwrap();
        assert!(now.contains(&format!("\"refresh-token\":\"r{}\"", "n".repeat(renewal))), "{now}");
        let lines =
            |text: &str| text.lines().filter(|line| !line.contains("id-token")).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(lines(&now), lines(&text));
        // Let the token expire.
        let (before, behind) = now.split_once("\"id-token\":\"").unwrap();
        let (_, behind) = behind.split_once('"').unwrap();
        fs::write(&path, format!("{before}\"id-token\":\"{}\"{behind}", token(-60))).unwrap();
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_written_costs_no_refresh_token() {
    let oracle = Oracle::start().await;
    let idp = Idp::start(Some(oracle.demo.clone())).await;
    let user = idp.user("rotates", &[("id-token", &token(-60)), ("refresh-token", "r")]);
    let path = kubeconfig(&oracle, &user);
    let lock = oracle.write("config.lock", b"");
    oracle.judge_adit("locked", from_ref(&path), &[], &Refused("could not be kept")).await;
    oracle.judge_adit("locked", from_ref(&path), &[], &Refused("kubelogin")).await;
    assert_eq!(idp.log(), [""; 0], "the provider was not asked");
    fs::remove_file(lock).unwrap();
    oracle.judge_adit("free again", &[path], &[], &Works).await;
}

#[tokio::test]
async fn a_token_that_is_refused_is_renewed_at_once_and_then_shared() {
    let demo = start_demo().await;
    let written = fs::read_to_string(demo.kubeconfig()).unwrap();
    let (_, of_demo) = written.split_once("token: \"").unwrap();
    let of_demo = format!("{{token: \"{}\"}}", of_demo.split('"').next().unwrap());
    let idp = Idp::start(None).await;
    let good = token(3600);
    demo.faults().accept_token(&good);
    *idp.state.prepared.lock().unwrap() = vec![good, token(3600)];
    let user = idp.user("good", &[("id-token", &token(-60)), ("refresh-token", "r")]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    fs::write(&path, written.replacen(&of_demo, &user, 1)).unwrap();
    let app = TestApp::start_on(demo, path, "", App::default()).await;
    assert_eq!(app.get("web.shop.localhost", "/whoami").await.0, 200);
    assert_eq!(idp.renewals(), 2, "the first one was refused");
    let (one, two) = tokio::join!(app.get("tools.shop.localhost", "/whoami"), app.get("web.shop.localhost", "/whoami"));
    assert_eq!((one.0, two.0, idp.renewals()), (200, 200, 0));
    app.finish().await;
}
