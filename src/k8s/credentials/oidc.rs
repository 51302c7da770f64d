//! The legacy OIDC sign-in (`auth-provider: oidc` of a kubeconfig's user): an ID token, renewed with a refresh token.
//!
//! It follows client-go (`plugin/pkg/client/auth/oidc`): the ID token of the kubeconfig is used until 10 s before it
//! expires, then the refresh token renews it, and the new tokens are written to the file. In addition, adit first checks
//! that the file is writable, because a provider that rotates refresh tokens accepts each one only once. It reads the
//! file before each renewal, because kubectl may have renewed the token. And it renews a refused token.

pub(super) mod id_token;
mod provider;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    panic::resume_unwind,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::BoxFuture;
use http::HeaderValue;
use rustls::sign::CertifiedKey;
use serde_json::json;
use tokio::{sync::Mutex as AsyncMutex, task::spawn_blocking, time::sleep};

use self::provider::{Client, Tokens};
use crate::{
    k8s::{
        credential::{Credential, bearer, chain},
        sign_in::{Failure, Issuer, Say},
    },
    tls::{bundle::Bundle, reason},
};

const ISSUER: &str = "idp-issuer-url";
const CLIENT_ID: &str = "client-id";
const CLIENT_SECRET: &str = "client-secret";
const CA_FILE: &str = "idp-certificate-authority";
const CA_DATA: &str = "idp-certificate-authority-data";
const ID_TOKEN: &str = "id-token";
const REFRESH_TOKEN: &str = "refresh-token";

/// A token is renewed this long before it expires, because clocks differ and the request takes time.
const MARGIN: Duration = Duration::from_secs(10);

/// Attempts to write the new tokens, and the pause between them, while another program holds the file's lock.
const WRITES: u32 = 10;
const WRITE_PAUSE: Duration = Duration::from_millis(200);

/// Settings of an `auth-provider` in the kubeconfig.
pub type Settings = HashMap<String, String>;

/// Storage of a user's settings: a kubeconfig.
pub trait Store: Send + Sync + 'static {
    /// Reads the current settings.
    ///
    /// # Errors
    /// Returns the reason as text.
    fn read(&self) -> Result<Settings, String>;

    /// Checks whether values could be written, without a change. Returns the reason if not.
    fn check(&self, keys: &[&str]) -> Result<(), String>;

    /// Writes values, and keeps the rest of the file.
    ///
    /// # Errors
    /// Returns the reason as text.
    fn write(&self, values: &[(&str, &str)]) -> Result<(), String>;
}

/// A user whose ID token comes from an OpenID Connect provider.
pub struct Oidc {
    issuer: String,
    client: Client,
    /// Client certificate of the same user.
    identity: Option<Arc<CertifiedKey>>,
    /// Key that identifies the user and its settings.
    key: String,
    /// Locked during a call, so that a file system that hangs costs one thread.
    store: Arc<AsyncMutex<Box<dyn Store>>>,
    /// ID token of the kubeconfig when it was loaded.
    loaded: Option<String>,
    /// Last ID token. A second request for it means that a server has refused it.
    last: Mutex<Option<String>>,
    /// Refresh token of the file, and the latest one, which could not be written. A new sign-in replaces both.
    unwritten: Mutex<Option<(String, String)>>,
}

impl Oidc {
    /// Returns the user. `user`: a key that identifies it.
    ///
    /// # Errors
    /// Fails if a setting is missing or the CA bundle cannot be used. The error names the setting and the fix.
    pub fn new(
        settings: &Settings,
        user: &str,
        identity: Option<Arc<CertifiedKey>>,
        store: Box<dyn Store>,
    ) -> Result<Self, String> {
        let wanted = |key: &str| {
            let value = value(settings, key).map(str::to_owned);
            value.ok_or_else(|| format!("its auth-provider has no {key}: add it"))
        };
        let secret = value(settings, CLIENT_SECRET).unwrap_or_default().to_owned();
        let (issuer, id) = (wanted(ISSUER)?, wanted(CLIENT_ID)?);
        let pem = ca(settings)?;
        let mut hasher = DefaultHasher::new();
        // Not the tokens: each renewal changes them.
        let own: BTreeMap<_, _> =
            settings.iter().filter(|(key, _)| ![ID_TOKEN, REFRESH_TOKEN].contains(&&***key)).collect();
        (own, &pem, chain(identity.as_ref())).hash(&mut hasher);
        let key = json!(["oidc", user, issuer, id, hasher.finish()]).to_string();
        let client = Client { id, secret, bundle: pem.map(bundle).transpose()? };
        let (last, unwritten) = (Mutex::default(), Mutex::default());
        let (store, loaded) = (Arc::new(AsyncMutex::new(store)), value(settings, ID_TOKEN).map(str::to_owned));
        Ok(Self { issuer, client, identity, key, store, loaded, last, unwritten })
    }

    /// Returns a key that identifies the sign-in: another secret or CA bundle needs another one.
    pub fn identity(&self) -> String {
        self.key.clone()
    }

    /// Returns the header of the kubeconfig's ID token, if that is valid.
    pub fn offered(&self) -> Option<HeaderValue> {
        let token = self.loaded.as_deref()?;
        let is_valid = id_token::expiry(token).is_ok_and(|expires| SystemTime::now() + MARGIN < expires);
        bearer(token).ok().filter(|_| is_valid)
    }

    /// Calls the store on another thread. The call goes on if the caller stops waiting.
    async fn stored<T: Send + 'static>(&self, call: impl FnOnce(&dyn Store) -> T + Send + 'static) -> T {
        let store = self.store.clone().lock_owned().await;
        let called = spawn_blocking(move || call(&**store)).await;
        called.unwrap_or_else(|panicked| resume_unwind(panicked.into_panic()))
    }

    async fn renew(&self, say: Say<'_>) -> Result<Credential, Failure> {
        let settings = self.stored(|store| store.read()).await.map_err(Failure::new)?;
        let last = self.last.lock().expect("no panic while the lock is held").clone();
        if let Some(token) = value(&settings, ID_TOKEN)
            && last.as_deref() != Some(token)
        {
            let expires = id_token::expiry(token).map_err(|reason| of_user(format!("its id-token {reason}")))?;
            if SystemTime::now() + MARGIN < expires {
                return self.issued(token, expires);
            }
        }
        let Some(refresh) = self.refresh_token(&settings) else {
            let has =
                if value(&settings, ID_TOKEN).is_some() { "its id-token has expired" } else { "it has no id-token" };
            return Err(of_user(format!("{has}, and there is no refresh-token")));
        };
        // Checked before the request: the provider may accept this refresh token only once.
        let cannot_write = |reason: String| of_user(format!("a renewed id-token could not be kept: {reason}"));
        self.stored(|store| store.check(&[ID_TOKEN, REFRESH_TOKEN])).await.map_err(cannot_write)?;
        let renewed = self.client.renew(&self.issuer, &refresh).await;
        let tokens = renewed.map_err(|reason| of_user(format!("the provider {} {reason}", self.issuer)))?;
        let expires = id_token::expiry(&tokens.id_token)
            .map_err(|reason| of_user(format!("the provider {} issued an id-token that {reason}", self.issuer)))?;
        let in_file = value(&settings, REFRESH_TOKEN).unwrap_or_default();
        self.keep(&tokens, &refresh, in_file, say).await;
        self.issued(&tokens.id_token, expires)
    }

    fn refresh_token(&self, settings: &Settings) -> Option<String> {
        let in_file = value(settings, REFRESH_TOKEN)?;
        let unwritten = self.unwritten.lock().expect("no panic while the lock is held").clone();
        let latest = unwritten.filter(|(before, _)| before == in_file).map(|(_, latest)| latest);
        Some(latest.unwrap_or_else(|| in_file.to_owned()))
    }

    /// Writes the tokens. If that fails, they are valid only until adit ends. `used`, `in_file`: refresh tokens.
    async fn keep(&self, tokens: &Tokens, used: &str, in_file: &str, say: Say<'_>) {
        let refresh = tokens.refresh_token.as_deref().unwrap_or(used).to_owned();
        let mut values = vec![(ID_TOKEN, tokens.id_token.clone())];
        if refresh != in_file {
            values.push((REFRESH_TOKEN, refresh.clone()));
        }
        *self.unwritten.lock().expect("no panic while the lock is held") = Some((in_file.to_owned(), refresh));
        let mut written = Ok(());
        for _ in 0..WRITES {
            let values = values.clone();
            written = self
                .stored(move |store| {
                    let values: Vec<_> = values.iter().map(|(key, value)| (*key, value.as_str())).collect();
                    store.write(&values)
                })
                .await;
            if written.is_ok() {
                *self.unwritten.lock().expect("no panic while the lock is held") = None;
                return;
            }
            sleep(WRITE_PAUSE).await;
        }
        say(&format!("the renewed tokens are not written: {}", written.err().unwrap_or_default()));
    }

    fn issued(&self, token: &str, expires: SystemTime) -> Result<Credential, Failure> {
        *self.last.lock().expect("no panic while the lock is held") = Some(token.to_owned());
        let header = bearer(token).map_err(|error| of_user(error.to_string()))?;
        Ok(Credential::issued(Some(header), self.identity.clone(), expires.checked_sub(MARGIN)))
    }
}

impl Issuer for Oidc {
    fn name(&self) -> String {
        format!("OIDC provider {}", self.issuer)
    }

    fn issue<'a>(&'a self, say: Say<'a>) -> BoxFuture<'a, Result<Credential, Failure>> {
        Box::pin(self.renew(say))
    }
}

fn of_user(reason: String) -> Failure {
    let hint = "sign in again with the tool that wrote this kubeconfig, or replace auth-provider by exec with the plugin \
                kubelogin (kubectl oidc-login)";
    Failure { hint: Some(hint.to_owned()), ..Failure::new(reason) }
}

/// Returns the value of a key. An empty value counts as absent.
fn value<'s>(settings: &'s Settings, key: &str) -> Option<&'s str> {
    settings.get(key).map(String::as_str).filter(|value| !value.is_empty())
}

/// Returns the file of the provider's CA bundle, if that is a file.
pub fn ca_file(settings: &Settings) -> Option<PathBuf> {
    value(settings, CA_FILE).filter(|_| value(settings, CA_DATA).is_none()).map(PathBuf::from)
}

/// Returns the CA bundle for the provider in PEM form, and the setting that has it. `None`: the system's.
fn ca(settings: &Settings) -> Result<Option<(&'static str, Vec<u8>)>, String> {
    Ok(match (value(settings, CA_DATA), value(settings, CA_FILE)) {
        (Some(data), _) => {
            let data: String = data.chars().filter(|char| !matches!(char, '\r' | '\n')).collect();
            Some((CA_DATA, STANDARD.decode(data).map_err(|_| format!("its {CA_DATA} is not valid base64"))?))
        }
        // As in client-go, a relative path is relative to the working directory.
        (None, Some(path)) => {
            let read = fs::read(path);
            Some((CA_FILE, read.map_err(|error| format!("cannot read its {CA_FILE} {path}: {}", reason(&error)))?))
        }
        (None, None) => None,
    })
}

fn bundle((key, pem): (&str, Vec<u8>)) -> Result<Arc<Bundle>, String> {
    Bundle::from_pem(&pem, &crate::tls::provider()).map(Arc::new).map_err(|reason| format!("its {key}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::{id_token::tests::token, *};

    /// A file, and whether it can be written.
    struct Fake(Settings, Result<(), String>);

    impl Store for Fake {
        fn read(&self) -> Result<Settings, String> {
            Ok(self.0.clone())
        }

        fn check(&self, _: &[&str]) -> Result<(), String> {
            self.1.clone()
        }

        fn write(&self, _: &[(&str, &str)]) -> Result<(), String> {
            self.1.clone()
        }
    }

    fn settings(more: &[(&str, &str)]) -> Settings {
        let all = [(ISSUER, "http://127.0.0.1:1"), (CLIENT_ID, "c")].iter().chain(more);
        all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn oidc(more: &[(&str, &str)], can_write: Result<(), String>) -> Oidc {
        let settings = settings(more);
        Oidc::new(&settings, "u", None, Box::new(Fake(settings.clone(), can_write))).unwrap()
    }

    async fn failure(oidc: &Oidc) -> Failure {
        oidc.issue(&|_| {}).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_token_that_is_valid_is_used_until_it_is_asked_for_again() {
        let oidc = oidc(&[(ID_TOKEN, &token(3600))], Ok(()));
        let credential = oidc.issue(&|_| {}).await.unwrap();
        assert!(credential.is_fresh() && credential.header.is_some());
        assert_eq!(failure(&oidc).await.reason, "its id-token has expired, and there is no refresh-token");
    }

    #[tokio::test]
    async fn nothing_is_asked_where_the_answer_could_not_be_kept() {
        for expires_in in [-60, 5] {
            let tokens = [(ID_TOKEN, token(expires_in)), (REFRESH_TOKEN, "r".to_owned())];
            let tokens = tokens.each_ref().map(|(key, value)| (*key, value.as_str()));
            let failure = failure(&oidc(&tokens, Err("it is read-only".to_owned()))).await;
            assert_eq!(failure.reason, "a renewed id-token could not be kept: it is read-only");
            assert!(failure.hint.unwrap().contains("kubelogin"));
        }
    }

    #[tokio::test]
    async fn what_goes_wrong_is_said_with_the_provider() {
        let unreachable = failure(&oidc(&[(REFRESH_TOKEN, "r")], Ok(()))).await.reason;
        assert_eq!(
            unreachable,
            "the provider http://127.0.0.1:1 cannot be reached: the connection is refused: nothing listens there"
        );
        let odd = failure(&oidc(&[(ID_TOKEN, "abc"), (REFRESH_TOKEN, "r")], Ok(()))).await.reason;
        assert_eq!(odd, "its id-token is not a JSON Web Token");
    }

    #[tokio::test]
    async fn a_new_sign_in_replaces_a_refresh_token_that_was_not_written() {
        let tokens = Tokens { id_token: token(3600), refresh_token: Some("rotated".to_owned()) };
        let before = oidc(&[(REFRESH_TOKEN, "r")], Err("it is read-only".to_owned()));
        before.keep(&tokens, "r", "r", &|_| {}).await;
        let refresh = |file: &str| before.refresh_token(&settings(&[(REFRESH_TOKEN, file)]));
        assert_eq!(refresh("r").as_deref(), Some("rotated"));
        assert_eq!(refresh("of the new sign-in").as_deref(), Some("of the new sign-in"));
    }

    /// A file system that hangs until the sender is dropped.
    struct Hanging(Mutex<std::sync::mpsc::Receiver<()>>);

    impl Store for Hanging {
        fn read(&self) -> Result<Settings, String> {
            let _ = self.0.lock().unwrap().recv();
            Err("it is gone".to_owned())
        }

        fn check(&self, _: &[&str]) -> Result<(), String> {
            Ok(())
        }

        fn write(&self, _: &[(&str, &str)]) -> Result<(), String> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_file_system_that_hangs_holds_up_no_other_task() {
        let (hung_tx, hung_rx) = std::sync::mpsc::channel();
        let oidc = Oidc::new(&settings(&[]), "u", None, Box::new(Hanging(Mutex::new(hung_rx)))).unwrap();
        for _ in 0..2 {
            let issued = tokio::time::timeout(Duration::from_millis(20), oidc.issue(&|_| {})).await;
            assert!(issued.is_err(), "its timeout holds");
        }
        drop(hung_tx);
        assert_eq!(failure(&oidc).await.reason, "it is gone");
    }

    #[test]
    fn other_settings_need_another_sign_in_and_other_tokens_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let ca = || fs::write(&file, rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem()).unwrap();
        ca();
        let path = file.to_str().unwrap();
        let of = |secret: &str, token: &str| {
            oidc(&[(CLIENT_SECRET, secret), (ID_TOKEN, token), (CA_FILE, path)], Ok(())).identity()
        };
        let first = of("a", "1");
        assert_eq!(first, of("a", "2"));
        assert_ne!(first, of("b", "1"));
        ca();
        assert_ne!(first, of("a", "1"));
        assert_eq!(ca_file(&settings(&[(CA_FILE, path)])), Some(file));
    }

    #[test]
    fn settings_that_are_missing_or_of_no_use_are_named() {
        let refused = |settings: &Settings| {
            Oidc::new(settings, "u", None, Box::new(Fake(Settings::new(), Ok(())))).err().unwrap_or_default()
        };
        assert_eq!(refused(&settings(&[(ISSUER, "")])), "its auth-provider has no idp-issuer-url: add it");
        assert_eq!(refused(&settings(&[(CLIENT_ID, "")])), "its auth-provider has no client-id: add it");
        assert_eq!(refused(&settings(&[(CA_DATA, "%")])), "its idp-certificate-authority-data is not valid base64");
        assert!(refused(&settings(&[(CA_FILE, "/no/such")])).contains("/no/such: no such file"));
        assert!(refused(&settings(&[(CA_DATA, "aGFsbG8=")])).starts_with("its idp-certificate-authority-data: "));
        assert_eq!(refused(&settings(&[(CLIENT_SECRET, "")])), "");
    }
}
