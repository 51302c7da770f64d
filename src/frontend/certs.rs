//! Certificates for TLS that ends here, minted per name. The CA that `adit trust install` made signs the names that it vouches
//! for; a CA of this process signs all others.

use std::{
    collections::HashMap,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    sync::Mutex as AsyncMutex,
    task::spawn_blocking,
    time::{Instant, timeout_at},
};
use tracing::{info, warn};

use crate::{random, trust};

/// Validity of a certificate, and how long before its end adit mints another one.
const VALID: Duration = Duration::from_secs(24 * 60 * 60);
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 60);

/// A certificate is valid from this long ago: the clocks of browsers and of adit may differ.
const BACKDATE: Duration = Duration::from_secs(60 * 60);

/// Maximum number of certificates in memory: clients choose the names.
const MOST: usize = 1000;

/// Name in the certificate for clients without a server name.
const NAMELESS: &str = "adit.localhost";

/// Maximum length of a common name in characters (RFC 5280, appendix A.1).
const LONGEST_COMMON_NAME: usize = 64;

/// Interval between checks whether the user's CA has changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Timeout for such a check: a home directory on the network may hang.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// Certificates of this process, and the CAs that sign them.
#[derive(Default)]
pub struct Certs {
    minted: Mutex<Minted>,
    /// Held by the thread that looks at the user's CA.
    looking: Arc<AsyncMutex<()>>,
}

#[derive(Default)]
struct Minted {
    /// CA of this process, made with the first certificate: without TLS it costs nothing.
    authority: Option<Authority>,
    trusted: Trusted,
    /// By name, with the wall-clock time when each was made: that clock runs on while a laptop sleeps.
    certificates: HashMap<String, (SystemTime, Arc<CertifiedKey>)>,
}

/// CA of this user, as `adit trust install` has made it.
#[derive(Default)]
struct Trusted {
    /// `None`: adit uses no CA of the user.
    folder: Option<PathBuf>,
    /// When the last check began.
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    authority: Option<(trust::Authority, Authority)>,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// Key of all leaf certificates: to make a key costs more than to sign a certificate.
    key: KeyPair,
}

type MintError = Box<dyn std::error::Error>;

impl Certs {
    /// Returns the TLS configuration for connections that end here. `protocols`: for ALPN, the preferred one first.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub fn server_config(self: Arc<Self>, protocols: &[&[u8]]) -> io::Result<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(crate::tls::provider());
        let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(Resolver(self)));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// Uses the CA in a folder, which may appear, change and disappear.
    pub fn following(folder: Option<PathBuf>) -> Arc<Self> {
        let trusted = Trusted { folder, ..Trusted::default() };
        Arc::new(Self { minted: Mutex::new(Minted { trusted, ..Minted::default() }), ..Self::default() })
    }

    /// Loads the user's CA again if it has changed or gone. Call it before each connection. While the file system does not answer,
    /// the CA stays, and connections wait for one check together.
    pub async fn look(self: &Arc<Self>) {
        let began = {
            let mut minted = self.lock();
            let Trusted { folder: Some(folder), looked, modified, .. } = &mut minted.trusted else { return };
            match looked.filter(|looked| looked.elapsed() < LOOK_EVERY) {
                Some(looked) => looked,
                None => match self.looking.clone().try_lock_owned() {
                    Ok(looking) => {
                        let (certs, folder, modified) = (self.clone(), folder.clone(), *modified);
                        spawn_blocking(move || {
                            certs.load(&folder, modified);
                            drop(looking);
                        });
                        *looked.insert(Instant::now())
                    }
                    Err(_) => looked.unwrap_or_else(Instant::now),
                },
            }
        };
        let _ = timeout_at(began + LOOK_TIMEOUT, self.looking.lock()).await;
    }

    /// Loads the user's CA if it is not the one of `last`. Blocks.
    fn load(&self, folder: &Path, last: Option<SystemTime>) {
        let modified = fs::metadata(folder.join("authority.json")).and_then(|file| file.modified()).ok();
        if modified == last {
            return;
        }
        let read = || -> Result<Option<_>, MintError> {
            let Some(trusted) = trust::Authority::load(folder)? else { return Ok(None) };
            let (issuer, certificate) = (trusted.issuer()?, trusted.issuing().clone());
            Ok(Some((trusted, Authority { issuer, certificate, key: KeyPair::generate()? })))
        };
        let authority = read().unwrap_or_else(|error| {
            warn!(%error, "the CA of 'adit trust' cannot be used: run 'adit trust install' to replace it");
            None
        });
        if let Some((trusted, _)) = &authority {
            info!(ca = trusted.name(), "certificates are signed by the CA of 'adit trust'");
        }
        let mut minted = self.lock();
        (minted.trusted.modified, minted.trusted.authority) = (modified, authority);
        minted.certificates.clear();
    }

    /// Returns whether the user's CA vouches for a name.
    pub fn vouches_for(&self, name: &str) -> bool {
        let minted = self.lock();
        minted.trusted.authority.as_ref().is_some_and(|(trusted, _)| trusted.permits(name))
    }

    fn lock(&self) -> MutexGuard<'_, Minted> {
        self.minted.lock().expect("no panic while the lock is held")
    }

    /// Returns the certificate for a name, which must be a valid DNS name.
    fn get(&self, name: &str) -> Result<Arc<CertifiedKey>, MintError> {
        let now = SystemTime::now();
        let mut minted = self.lock();
        let Minted { authority, trusted, certificates } = &mut *minted;
        // If the clock was set back, the age is an error, and adit mints another certificate.
        let is_young = |since: &SystemTime| now.duration_since(*since).is_ok_and(|age| age < VALID - RENEW_BEFORE);
        if let Some((since, certificate)) = certificates.get(name)
            && is_young(since)
        {
            return Ok(certificate.clone());
        }
        let of_user = trusted.authority.as_ref().filter(|(trusted, _)| trusted.permits(name));
        let authority = match (of_user, authority) {
            (Some((_, authority)), _) => authority,
            (None, Some(authority)) => authority,
            (None, authority) => authority.insert(Authority::new()?),
        };
        let certificate = Arc::new(authority.mint(name)?);
        if certificates.len() >= MOST {
            certificates.clear();
        }
        certificates.insert(name.to_owned(), (now, certificate.clone()));
        Ok(certificate)
    }
}

impl Authority {
    fn new() -> Result<Self, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, "adit (this process)");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), certificate, key: KeyPair::generate()? })
    }

    fn mint(&self, name: &str) -> Result<CertifiedKey, MintError> {
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        if name.len() <= LONGEST_COMMON_NAME {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        if name == NAMELESS {
            let addresses = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].map(SanType::IpAddress);
            params.subject_alt_names.extend(addresses);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        let now = SystemTime::now();
        (params.not_before, params.not_after) = ((now - BACKDATE).into(), (now + VALID).into());
        let leaf = params.signed_by(&self.key, &self.issuer)?.der().clone();
        let key = PrivateKeyDer::try_from(self.key.serialize_der())?;
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
        Ok(CertifiedKey::new(vec![leaf, self.certificate.clone()], key))
    }
}

/// Returns a random serial number: 16 bytes, positive (RFC 5280, section 4.1.2.2). The default is a digest of the key, which all
/// leaves share, and Firefox rejects two certificates with the same issuer and serial number.
fn serial() -> Result<SerialNumber, MintError> {
    let mut bytes = random::bytes::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

struct Resolver(Arc<Certs>);

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls passes only valid DNS names.
        let name = hello.server_name().unwrap_or(NAMELESS).to_ascii_lowercase();
        self.0.get(&name).inspect_err(|error| warn!(name, %error, "no certificate could be made")).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_authority_of_the_user_signs_what_it_vouches_for() {
        let home = tempfile::tempdir().unwrap();
        let certs = Certs::following(Some(home.path().to_owned()));
        let issuer = async |name: &str| {
            certs.lock().trusted.looked = None;
            certs.look().await;
            certs.get(name).unwrap().cert[1].clone()
        };
        let of_process = issuer("web.shop.localhost").await;
        assert!(!certs.vouches_for("web.shop.localhost"));
        let authority = trust::Authority::create(home.path(), "ana at laptop", &[]).unwrap();
        assert_eq!(issuer("web.shop.localhost").await, *authority.issuing());
        assert!(certs.vouches_for("web.shop.localhost") && !certs.vouches_for("example.com"));
        assert_eq!(issuer("example.com").await, of_process);
        authority.remove().unwrap();
        assert_eq!(issuer("web.shop.localhost").await, of_process);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_folder_that_hangs_delays_connections_for_one_second_at_most() {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let home = tempfile::tempdir().unwrap();
        // Nobody writes to the pipe: to open it for reading blocks.
        let file = home.path().join("authority.json");
        mknodat(CWD, &file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let certs = Certs::following(Some(home.path().to_owned()));
        let began = Instant::now();
        certs.look().await;
        assert!(began.elapsed() >= LOOK_TIMEOUT);
        let began = Instant::now();
        for _ in 0..5 {
            certs.look().await;
            certs.get("web.shop.localhost").unwrap();
        }
        assert!(began.elapsed() < LOOK_TIMEOUT);
        // Let the threads go on, so that the runtime ends. To open a pipe for both never blocks.
        fs::OpenOptions::new().read(true).write(true).open(&file).unwrap();
    }

    #[test]
    fn leaves_of_the_authority_are_verified_and_its_constraints_hold() {
        use rustls::{
            RootCertStore,
            client::{WebPkiServerVerifier, danger::ServerCertVerifier},
            pki_types::{ServerName, UnixTime},
        };
        let home = tempfile::tempdir().unwrap();
        let authority = trust::Authority::create(home.path(), "ana at laptop", &[]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone()).unwrap();
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crate::tls::provider()).build().unwrap();
        let signer = Authority {
            issuer: authority.issuer().unwrap(),
            certificate: authority.issuing().clone(),
            key: KeyPair::generate().unwrap(),
        };
        let long = format!("{}.{}.localhost", "a".repeat(60), "b".repeat(60));
        for (name, asked, is_trusted) in [
            ("web.shop.localhost", "web.shop.localhost", true),
            (long.as_str(), long.as_str(), true),
            (NAMELESS, "127.0.0.1", true),
            // A thief of the key cannot sign for other names.
            ("www.example.com", "www.example.com", false),
        ] {
            let chain = signer.mint(name).unwrap().cert.clone();
            let server = ServerName::try_from(asked.to_owned()).unwrap();
            let verified = verifier.verify_server_cert(&chain[0], &chain[1..], &server, &[], UnixTime::now());
            assert_eq!(verified.is_ok(), is_trusted, "{name}: {verified:?}");
            let slow = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() - 30 * 60));
            let verified = verifier.verify_server_cert(&chain[0], &chain[1..], &server, &[], slow);
            assert_eq!(verified.is_ok(), is_trusted, "{name}, by a clock that is slow: {verified:?}");
        }
    }

    #[test]
    fn a_certificate_is_renewed_before_it_expires() {
        let certs = Certs::default();
        let first = certs.get("a.localhost").unwrap();
        for (age, is_kept) in
            [(VALID - RENEW_BEFORE - Duration::from_secs(60), true), (VALID - Duration::from_secs(60), false)]
        {
            certs.lock().certificates.get_mut("a.localhost").unwrap().0 = SystemTime::now() - age;
            assert_eq!(Arc::ptr_eq(&first, &certs.get("a.localhost").unwrap()), is_kept, "{age:?}");
        }
    }

    /// Returns the serial number of a certificate, behind SEQUENCE, SEQUENCE, and [0] version 3.
    fn serial_of(certificate: &[u8]) -> &[u8] {
        let version = [0xa0, 3, 2, 1, 2, 2];
        let at = certificate.windows(version.len()).position(|part| part == version).unwrap() + version.len();
        &certificate[at + 1..at + 1 + usize::from(certificate[at])]
    }

    #[test]
    fn a_name_keeps_its_certificate_and_names_are_bounded() {
        let certs = Certs::default();
        let first = certs.get("a.localhost").unwrap();
        assert!(Arc::ptr_eq(&first, &certs.get("a.localhost").unwrap()));
        assert!(!Arc::ptr_eq(&first, &certs.get("b.localhost").unwrap()));
        let serial = |certificate: &CertifiedKey| serial_of(&certificate.cert[0]).to_vec();
        assert_ne!(serial(&first), serial(&certs.get("b.localhost").unwrap()), "Firefox refuses the second one");
        for number in 0..MOST {
            certs.get(&format!("{number}.localhost")).unwrap();
        }
        assert!(certs.lock().certificates.len() <= MOST);
    }
}
