//! How adit proves to an API server who asks: a token, a password, a client certificate, a plugin.

pub mod exec;
pub mod exec_credential;
pub mod oidc;
pub mod said;
pub mod token_file;

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderValue,
    header::{AUTHORIZATION, InvalidHeaderValue},
};
use jiff::Timestamp;
use rustls::sign::CertifiedKey;

use self::{exec::Plugin, oidc::Oidc, token_file::TokenFile};
use super::sign_in::{Failure, SignIn, SignIns};
use crate::tls::certificate::Certificate;

/// A credential that comes expired is used for this long all the same: the clocks may differ, and a plugin must not
/// run for each request.
const SHORTEST: Duration = Duration::from_secs(5);

/// Credential of one request.
#[derive(Default)]
pub struct Credential {
    /// The Authorization header. None: none.
    pub header: Option<HeaderValue>,
    /// The client certificate with its key.
    pub identity: Option<Arc<CertifiedKey>>,
    /// None: it does not expire.
    expires: Option<SystemTime>,
    issued: Option<Instant>,
    accepted: AtomicBool,
}

impl Credential {
    /// One that is valid until it is refused.
    pub fn new(header: Option<HeaderValue>, identity: Option<Arc<CertifiedKey>>) -> Self {
        Self { header, identity, ..Self::default() }
    }

    /// One that somebody has issued now, until `expires`.
    pub fn issued(
        header: Option<HeaderValue>,
        identity: Option<Arc<CertifiedKey>>,
        expires: Option<SystemTime>,
    ) -> Self {
        Self { issued: Some(Instant::now()), expires, ..Self::new(header, identity) }
    }

    /// Returns when it expires. None: it does not say.
    pub fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    /// Returns when its client certificate ends. None: it has none.
    fn certificate_ends(&self) -> Option<Timestamp> {
        let certificate = self.identity.as_ref()?.cert.first()?;
        Timestamp::from_second(Certificate::parse(certificate)?.not_after).ok()
    }

    /// Returns whether it has not expired. As in client-go, a token is used up to its last second.
    pub fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|expires| SystemTime::now() < expires)
            || self.issued.is_some_and(|at| at.elapsed() < SHORTEST && self.came_expired(at))
    }

    fn came_expired(&self, issued: Instant) -> bool {
        let then = SystemTime::now().checked_sub(issued.elapsed());
        self.expires.zip(then).is_some_and(|(expires, then)| expires <= then)
    }

    /// Notes that an API server has accepted it; returns whether that is the first time.
    pub(super) fn accept(&self) -> bool {
        !self.accepted.load(Ordering::Relaxed) && !self.accepted.swap(true, Ordering::Relaxed)
    }

    pub(super) fn is_accepted(&self) -> bool {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Returns the header of a token.
///
/// # Errors
/// The token has characters that HTTP does not allow. The text does not show them.
pub fn bearer(token: &str) -> io::Result<HeaderValue> {
    sensitive(HeaderValue::try_from(format!("Bearer {token}")))
        .map_err(|_| io::Error::other("the token has a line end, or another character that HTTP does not allow"))
}

/// Returns the header of a user name and a password (RFC 7617).
pub fn basic(name: &str, password: &str) -> Option<HeaderValue> {
    sensitive(HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))))).ok()
}

/// Returns the error of a file without its number.
pub(super) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

fn sensitive(header: Result<HeaderValue, InvalidHeaderValue>) -> Result<HeaderValue, InvalidHeaderValue> {
    header.map(|mut header| {
        header.set_sensitive(true);
        header
    })
}

/// How a user of a kubeconfig signs in, as the file says.
pub enum Login {
    Fixed(Credential),
    TokenFile(TokenFile),
    Plugin(Box<Plugin>),
    Oidc(Box<Oidc>),
}

impl Login {
    /// Returns where the credential comes from. `user`: its name for people.
    pub fn method(self, user: &str, sign_ins: &SignIns) -> Method {
        match self {
            Self::Fixed(credential) => Method::Fixed(Arc::new(credential)),
            Self::TokenFile(file) => Method::TokenFile(file),
            Self::Plugin(plugin) => Method::SignIn(sign_ins.get(&plugin.identity(), user, || plugin)),
            Self::Oidc(oidc) => Method::SignIn(sign_ins.get(&oidc.identity(), user, || oidc)),
        }
    }
}

/// Source of a user's credential.
#[derive(Clone)]
pub enum Method {
    /// The kubeconfig has it, or there is none.
    Fixed(Arc<Credential>),
    TokenFile(TokenFile),
    /// Somebody issues it: a plugin, or an OIDC provider.
    SignIn(Arc<SignIn>),
}

/// A user of a kubeconfig.
#[derive(Clone)]
pub struct User {
    method: Method,
    /// Headers of each request, whatever the credential: an Authorization among them comes before its own.
    fixed: HeaderMap,
}

impl User {
    pub fn new(method: Method, fixed: HeaderMap) -> Self {
        Self { method, fixed }
    }

    /// Returns the sign-in that issues the credential, where one does.
    pub fn sign_in(&self) -> Option<&Arc<SignIn>> {
        match &self.method {
            Method::SignIn(sign_in) => Some(sign_in),
            _ => None,
        }
    }

    /// Returns the credential, and signs in where there is none that is fresh.
    ///
    /// # Errors
    /// The sign-in has failed: now, or a moment ago.
    pub async fn credential(&self) -> Result<Arc<Credential>, Failure> {
        match &self.method {
            Method::Fixed(credential) => Ok(credential.clone()),
            Method::TokenFile(file) => Ok(file.credential()),
            Method::SignIn(sign_in) => sign_in.credential().await,
        }
    }

    /// Returns the credential if there is a fresh one. Signs in never.
    pub fn present(&self) -> Option<Arc<Credential>> {
        match &self.method {
            Method::Fixed(credential) => Some(credential.clone()),
            Method::TokenFile(file) => Some(file.credential()),
            Method::SignIn(sign_in) => sign_in.present(),
        }
    }

    /// Returns why a server says 401, as far as that can be seen from here.
    pub fn refusal(&self) -> Failure {
        let now = Timestamp::now();
        match self.present().and_then(|credential| credential.certificate_ends()).filter(|end| *end < now) {
            Some(end) => Failure {
                reason: format!("the API server does not accept the client certificate, which expired at {end} (401)"),
                hint: Some("renew it with the tool that has written the kubeconfig".to_owned()),
            },
            None => Failure::refused(),
        }
    }

    /// Waits until there is a fresh credential, because somebody else signs in.
    pub async fn signed_in(&self) {
        if let Method::SignIn(sign_in) = &self.method {
            sign_in.signed_in().await;
        }
    }

    /// Notes that an API server has accepted a credential.
    pub fn accepted(&self, credential: &Credential) {
        if credential.accept()
            && let Method::SignIn(sign_in) = &self.method
        {
            sign_in.accepted();
        }
    }

    /// Notes that an API server has refused a credential. Returns whether [`credential`](Self::credential) may give
    /// another one.
    pub fn refused(&self, credential: &Arc<Credential>) -> bool {
        match &self.method {
            Method::Fixed(_) => false,
            Method::TokenFile(file) => file.renew(credential),
            Method::SignIn(sign_in) => {
                sign_in.refused(credential);
                true
            }
        }
    }

    /// Returns the headers of a request with this credential.
    pub fn headers(&self, credential: &Credential) -> HeaderMap {
        let mut headers = self.fixed.clone();
        if let Some(header) = &credential.header {
            headers.entry(AUTHORIZATION).or_insert_with(|| header.clone());
        }
        headers
    }
}

/// The credential of one request is renewed once.
pub struct Renewal<'a> {
    user: &'a User,
    is_done: bool,
}

impl<'a> Renewal<'a> {
    pub fn new(user: &'a User) -> Self {
        Self { user, is_done: false }
    }

    /// Notes that a server has refused a credential. Returns whether to send the request again, with the next one.
    pub fn again(&mut self, credential: &Arc<Credential>) -> bool {
        let may_renew = self.user.refused(credential);
        may_renew && !std::mem::replace(&mut self.is_done, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_used_until_it_expires_and_not_a_minute_less() {
        let until = |seconds: i64| {
            let now = SystemTime::now();
            let shift = Duration::from_secs(seconds.unsigned_abs());
            Credential::issued(None, None, Some(if seconds < 0 { now - shift } else { now + shift }))
        };
        assert!(Credential::default().is_fresh() && Credential::issued(None, None, None).is_fresh());
        assert!(until(1).is_fresh() && until(50).is_fresh());
        let old = |mut credential: Credential, seconds| {
            credential.issued = credential.issued.map(|at| at - Duration::from_secs(seconds));
            credential
        };
        // It was issued 20 s ago, and held for 10 s.
        assert!(!old(until(-10), 20).is_fresh());
        // It was issued now, and had expired an hour ago: the clocks differ.
        assert!(until(-3600).is_fresh() && !old(until(-3600), 6).is_fresh());
        let short = until(1);
        std::thread::sleep(Duration::from_millis(1_050));
        assert!(!short.is_fresh(), "a second is a second");
    }

    #[test]
    fn the_user_of_a_servers_url_comes_before_the_token() {
        let headers = |fixed: HeaderMap| {
            let credential = Credential::new(Some(bearer("secret").unwrap()), None);
            User::new(Method::Fixed(Arc::default()), fixed).headers(&credential)
        };
        assert_eq!(headers(HeaderMap::new())[AUTHORIZATION], "Bearer secret");
        let fixed = HeaderMap::from_iter([(AUTHORIZATION, basic("ana", "b").unwrap())]);
        assert_eq!(headers(fixed)[AUTHORIZATION], basic("ana", "b").unwrap());
    }

    #[test]
    fn a_password_is_a_header_and_no_secret_is_shown() {
        let header = basic("ana", "p:w").unwrap();
        assert_eq!(header, "Basic YW5hOnA6dw==");
        let credential = Credential::new(Some(bearer("secret").unwrap()), None);
        assert!(!format!("{credential:?}{:?}", credential.header).contains("secret"));
    }

    #[test]
    fn a_client_certificate_that_has_expired_is_the_reason_of_a_401() {
        for (year, wanted) in [(2020, "which expired at 2020-01-01T00:00:00Z (401)"), (2999, "the credentials (401)")] {
            let mut params = rcgen::CertificateParams::new(["ana".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            let (chain, key) = (params.self_signed(&key).unwrap().pem(), key.serialize_pem());
            let provider = crate::tls::provider();
            let identity = crate::tls::identity::from_pem(chain.as_bytes(), key.as_bytes(), &provider).unwrap();
            let credential = Credential::new(None, Some(Arc::new(identity)));
            let refusal = User::new(Method::Fixed(Arc::new(credential)), HeaderMap::new()).refusal();
            assert!(refusal.reason.ends_with(wanted), "{refusal:?}");
        }
    }
}
