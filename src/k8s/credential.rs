//! Credential of one request to an API server: a header, a client certificate, or neither.

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
use http::{HeaderValue, header::InvalidHeaderValue};
use jiff::Timestamp;
use rustls::{pki_types::CertificateDer, sign::CertifiedKey};

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
    pub(super) fn certificate_ends(&self) -> Option<Timestamp> {
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
pub(super) fn chain(identity: Option<&Arc<CertifiedKey>>) -> Option<&[CertificateDer<'static>]> {
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

fn sensitive(header: Result<HeaderValue, InvalidHeaderValue>) -> Result<HeaderValue, InvalidHeaderValue> {
    header.map(|mut header| {
        header.set_sensitive(true);
        header
    })
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
    fn a_password_is_a_header_and_no_secret_is_shown() {
        let header = basic("ana", "p:w").unwrap();
        assert_eq!(header, "Basic YW5hOnA6dw==");
        let credential = Credential::new(Some(bearer("secret").unwrap()), None);
        assert!(!format!("{credential:?}{:?}", credential.header).contains("secret"));
    }
}
