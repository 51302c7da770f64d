//! Credentials for an API server: a token, a password, a client certificate, or a credential plugin.

pub mod exec;
pub mod exec_credential;
pub mod oidc;
pub mod token_file;

use std::{
    fmt,
    hash::{Hash, Hasher},
    io,
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
use rustls::{pki_types::CertificateDer, sign::CertifiedKey};

use self::{exec::Plugin, oidc::Oidc, token_file::TokenFile};
use super::sign_in::{Failure, SignIn, SignIns};
use crate::tls::certificate::Certificate;

/// Minimum time that an expired new credential is used: the clocks may differ, and a plugin must not run for each
/// request.
const SHORTEST: Duration = Duration::from_secs(5);

/// Credential of one request.
#[derive(Default)]
pub struct Credential {
    /// Authorization header. `None`: no header.
    pub header: Option<HeaderValue>,
    /// Client certificate with its key.
    pub identity: Option<Arc<CertifiedKey>>,
    /// `None`: it does not expire.
    expires: Option<SystemTime>,
    issued: Option<Instant>,
    accepted: AtomicBool,
}

impl Credential {
    /// Returns a credential that is valid until it is refused.
    pub fn new(header: Option<HeaderValue>, identity: Option<Arc<CertifiedKey>>) -> Self {
        Self { header, identity, ..Self::default() }
    }

    /// Returns a credential that was issued now and is valid until `expires`.
    pub fn issued(
        header: Option<HeaderValue>,
        identity: Option<Arc<CertifiedKey>>,
        expires: Option<SystemTime>,
    ) -> Self {
        Self { issued: Some(Instant::now()), expires, ..Self::new(header, identity) }
    }

    /// Returns the expiry. `None`: it has none.
    pub fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    /// Returns the expiry of the client certificate. `None`: there is no certificate.
    fn certificate_ends(&self) -> Option<Timestamp> {
        let certificate = self.identity.as_ref()?.cert.first()?;
        Timestamp::from_second(Certificate::parse(certificate)?.not_after).ok()
    }

    /// Returns whether the credential has not expired. As in client-go, a token is used until its last second.
    pub fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|expires| SystemTime::now() < expires)
            || self.issued.is_some_and(|at| at.elapsed() < SHORTEST && self.came_expired(at))
    }

    fn came_expired(&self, issued: Instant) -> bool {
        let then = SystemTime::now().checked_sub(issued.elapsed());
        self.expires.zip(then).is_some_and(|(expires, then)| expires <= then)
    }

    /// Records that an API server has accepted the credential. Returns whether this is the first time.
    pub(super) fn accept(&self) -> bool {
        !self.accepted.load(Ordering::Relaxed) && !self.accepted.swap(true, Ordering::Relaxed)
    }

    pub(super) fn is_accepted(&self) -> bool {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Hash for Credential {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.header, chain(self.identity.as_ref())).hash(state);
    }
}

/// Returns the certificates of an identity.
fn chain(identity: Option<&Arc<CertifiedKey>>) -> Option<&[CertificateDer<'static>]> {
    identity.map(|identity| &*identity.cert)
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Returns the header for a token.
///
/// # Errors
/// Fails if the token has characters that HTTP does not allow. The error does not contain them.
pub fn bearer(token: &str) -> io::Result<HeaderValue> {
    sensitive(HeaderValue::try_from(format!("Bearer {token}")))
        .map_err(|_| io::Error::other("the token has a line end, or another character that HTTP does not allow"))
}

/// Returns the header for a user name and a password (RFC 7617).
pub fn basic(name: &str, password: &str) -> Option<HeaderValue> {
    sensitive(HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))))).ok()
}

/// Returns the text of a file error without the OS error number.
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

/// Login method of a kubeconfig user.
pub enum Login {
    Fixed(Credential),
    TokenFile(TokenFile),
    Plugin(Box<Plugin>),
    Oidc(Box<Oidc>),
}

impl Hash for Login {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Fixed(credential) => credential.hash(state),
            Self::TokenFile(file) => file.hash(state),
            Self::Plugin(plugin) => plugin.identity().hash(state),
            Self::Oidc(oidc) => oidc.identity().hash(state),
        }
    }
}

impl Login {
    /// Returns the source of the credential. `user`: its name for messages.
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
    /// The kubeconfig contains the credential, or there is none.
    Fixed(Arc<Credential>),
    TokenFile(TokenFile),
    /// A plugin or an OIDC provider issues the credential.
    SignIn(Arc<SignIn>),
}

/// User of a kubeconfig.
#[derive(Clone)]
pub struct User {
    method: Method,
    /// Headers for every request. An Authorization header here replaces that of the credential.
    fixed: HeaderMap,
}

impl User {
    pub fn new(method: Method, fixed: HeaderMap) -> Self {
        Self { method, fixed }
    }

    /// Returns the sign-in that issues the credential, if there is one.
    pub fn sign_in(&self) -> Option<&Arc<SignIn>> {
        match &self.method {
            Method::SignIn(sign_in) => Some(sign_in),
            _ => None,
        }
    }

    /// Returns the credential. Signs in if there is no fresh one.
    ///
    /// # Errors
    /// Fails if the sign-in fails, or failed a moment ago.
    pub async fn credential(&self) -> Result<Arc<Credential>, Failure> {
        match &self.method {
            Method::Fixed(credential) => Ok(credential.clone()),
            Method::TokenFile(file) => Ok(file.credential().await),
            Method::SignIn(sign_in) => sign_in.credential().await,
        }
    }

    /// Returns the credential if there is a fresh one. Never signs in.
    pub fn present(&self) -> Option<Arc<Credential>> {
        match &self.method {
            Method::Fixed(credential) => Some(credential.clone()),
            Method::TokenFile(file) => Some(file.present()),
            Method::SignIn(sign_in) => sign_in.present(),
        }
    }

    /// Returns the likely reason for a 401.
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

    /// Waits for a fresh credential from a sign-in that another caller starts, or reads that of an old token file.
    pub async fn signed_in(&self) {
        match &self.method {
            Method::Fixed(_) => {}
            Method::TokenFile(file) => drop(file.credential().await),
            Method::SignIn(sign_in) => sign_in.signed_in().await,
        }
    }

    /// Records that an API server has accepted a credential.
    pub fn accepted(&self, credential: &Credential) {
        if credential.accept()
            && let Method::SignIn(sign_in) = &self.method
        {
            sign_in.accepted();
        }
    }

    /// Records that an API server has refused a credential. Returns whether [`credential`](Self::credential) may return
    /// another one.
    pub async fn refused(&self, credential: &Arc<Credential>) -> bool {
        match &self.method {
            Method::Fixed(_) => false,
            Method::TokenFile(file) => file.renew(credential).await,
            Method::SignIn(sign_in) => {
                sign_in.refused(credential);
                true
            }
        }
    }

    /// Returns the headers for a request with this credential.
    pub fn headers(&self, credential: &Credential) -> HeaderMap {
        let mut headers = self.fixed.clone();
        if let Some(header) = &credential.header {
            headers.entry(AUTHORIZATION).or_insert_with(|| header.clone());
        }
        headers
    }
}

/// Renews the credential of a request at most once.
pub struct Renewal<'a> {
    user: &'a User,
    is_done: bool,
}

impl<'a> Renewal<'a> {
    pub fn new(user: &'a User) -> Self {
        Self { user, is_done: false }
    }

    /// Records that a server has refused a credential. Returns whether to retry the request with the next one.
    pub async fn again(&mut self, credential: &Arc<Credential>) -> bool {
        let may_renew = self.user.refused(credential).await;
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
        // Issued 20 s ago, expired 10 s ago.
        assert!(!old(until(-10), 20).is_fresh());
        // Issued now, but expired an hour ago: the clocks differ.
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
