//! Sources of credentials for an API server: a token, a password, a client certificate, or a credential plugin.

pub mod exec;
pub mod exec_credential;
pub mod oidc;
pub mod token_file;

use std::{
    hash::{Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::SystemTime,
};

use http::{HeaderMap, header::AUTHORIZATION};
use jiff::Timestamp;

use self::{exec::Plugin, oidc::Oidc, token_file::TokenFile};
use super::{
    credential::Credential,
    sign_in::{Failure, SignIn, SignIns},
};

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
    /// Offers a newer ID token of the kubeconfig to the sign-in that uses an older one.
    pub fn offer(&self, sign_ins: &SignIns) {
        if let Self::Oidc(oidc) = self
            && let Some(header) = oidc.offered()
        {
            sign_ins.offer(&oidc.identity(), &header);
        }
    }

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
    verdict: Arc<Mutex<ClusterVerdict>>,
}

/// Verdict of one cluster on the credentials of a sign-in, which several clusters may share.
#[derive(Default)]
enum ClusterVerdict {
    #[default]
    None,
    /// It has accepted this one.
    Accepts(Weak<Credential>),
    /// It has refused one that another cluster accepts, and got a new one for it. No further one would help.
    Refuses,
}

impl User {
    pub fn new(method: Method, fixed: HeaderMap) -> Self {
        Self { method, fixed, verdict: Arc::default() }
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

    /// Returns whether requests with this credential say who the user is.
    pub fn is_named(&self, credential: &Credential) -> bool {
        credential.identity.is_some() || self.headers(credential).contains_key(AUTHORIZATION)
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
    pub fn accepted(&self, credential: &Arc<Credential>) {
        let Method::SignIn(sign_in) = &self.method else { return };
        *self.verdict() = ClusterVerdict::Accepts(Arc::downgrade(credential));
        if credential.accept() {
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
                let is_replaced = sign_in.present().is_some_and(|present| !Arc::ptr_eq(&present, credential));
                let ends = !is_replaced && self.ends(credential);
                if ends {
                    sign_in.refused(credential);
                }
                is_replaced || ends
            }
        }
    }

    /// Returns whether the refusal of a credential ends it for all clusters: this cluster has accepted it before, or no
    /// cluster has. Otherwise this cluster may end one credential: the one that it accepted before a change of its settings.
    fn ends(&self, refused: &Arc<Credential>) -> bool {
        let mut verdict = self.verdict();
        match &*verdict {
            ClusterVerdict::Accepts(accepted) if accepted.as_ptr() == Arc::as_ptr(refused) => true,
            ClusterVerdict::Refuses => false,
            _ => {
                if refused.is_accepted() {
                    *verdict = ClusterVerdict::Refuses;
                }
                true
            }
        }
    }

    fn verdict(&self) -> MutexGuard<'_, ClusterVerdict> {
        self.verdict.lock().expect("no panic while the lock is held")
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

/// Returns the part of a credential that expires first (a word for messages), and its expiry. `None`: no part has a known expiry.
pub fn first_expiry(credential: &Credential) -> Option<(&'static str, SystemTime)> {
    if let Some(expires) = credential.expires() {
        return Some(("credentials", expires));
    }
    let token = credential.header.as_ref().and_then(|header| header.to_str().ok()?.strip_prefix("Bearer "));
    let token = token.and_then(oidc::id_token::stated_expiry).map(|end| ("token", end));
    let certificate = credential.certificate_ends().map(|end| ("client certificate", SystemTime::from(end)));
    [token, certificate].into_iter().flatten().min_by_key(|(_, end)| *end)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use futures::future::BoxFuture;

    use super::*;
    use crate::k8s::{
        credential::{basic, bearer},
        sign_in::{Issuer, Say},
    };

    struct Counting(Arc<AtomicUsize>);

    impl Issuer for Counting {
        fn name(&self) -> String {
            "'counting'".to_owned()
        }

        fn issue<'a>(&'a self, _: Say<'a>) -> BoxFuture<'a, Result<Credential, Failure>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Ok(Credential::default()) })
        }
    }

    #[tokio::test]
    async fn a_cluster_that_refuses_a_sign_in_does_not_end_it_for_the_others() {
        let (sign_ins, runs) = (SignIns::new(), Arc::new(AtomicUsize::new(0)));
        let user = || {
            let issuer = || Box::new(Counting(runs.clone())) as Box<dyn Issuer>;
            User::new(Method::SignIn(sign_ins.get("key", "ana", issuer)), HeaderMap::new())
        };
        let (accepts, refuses) = (user(), user());
        accepts.accepted(&accepts.credential().await.unwrap());
        for _ in 0..5 {
            let mut renewal = Renewal::new(&refuses);
            while renewal.again(&refuses.credential().await.unwrap()).await {}
        }
        assert_eq!(runs.load(Ordering::Relaxed), 2, "a new one is tried once");
        let first = accepts.credential().await.unwrap();
        accepts.accepted(&first);
        // It has expired for the cluster that accepted it, and so for both.
        assert!(accepts.refused(&first).await);
        let second = accepts.credential().await.unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(refuses.refused(&first).await, "the next one may be accepted");
        // Not accepted by any cluster yet: the one that refuses all does not end it either.
        assert!(!refuses.refused(&second).await);
        refuses.accepted(&second);
        assert!(refuses.refused(&second).await, "it was accepted here before");
        assert!(!Arc::ptr_eq(&second, &refuses.credential().await.unwrap()));
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
    fn the_expiry_of_a_fixed_token_is_read_from_the_token() {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let of = |token: &str| first_expiry(&Credential::new(Some(bearer(token).unwrap()), None));
        let jwt = |claims: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
        assert_eq!(of(&jwt("{\"exp\": 1600000000}")), Some(("token", at)));
        assert_eq!((of(&jwt("{}")), of("opaque")), (None, None));
        let user = User::new(Method::Fixed(Arc::default()), HeaderMap::new());
        assert!(!user.is_named(&Credential::default()));
        assert!(user.is_named(&Credential::new(Some(bearer("opaque").unwrap()), None)));
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
