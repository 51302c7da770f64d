//! The CA: a key, and a certificate that is valid for local names only.
//!
//! Its name constraints are critical (RFC 5280, section 4.2.1.10), so a stolen key cannot impersonate public sites. Constraints
//! on DNS names alone would allow all IP addresses, so addresses are constrained too. Java ignores the constraints of a root, but
//! not those of certificates below it. So the root signs a single intermediate certificate, with the same constraints, which
//! issues all others. The root's key is never stored.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::HEXLOWER;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic_file;

/// Key of the intermediate certificate.
const KEY: &str = "key.pem";
/// The root certificate, which stores trust.
const CERTIFICATE: &str = "cert.pem";
const ISSUING: &str = "issuing.pem";
const FACTS: &str = "authority.json";

/// Folder of all roots that a store may still trust: the current one, and replaced ones. Without this record, a root could not be
/// removed from stores after its files are broken or gone.
const ROOTS: &str = "roots";

/// Validity: two years. Apple accepts at most 825 days from CAs other than its own.
const VALID: Duration = Duration::from_secs(2 * 365 * 24 * 60 * 60);

/// Tolerance for wrong clocks.
const BACKDATE: Duration = Duration::from_secs(60 * 60);

/// A CA is replaced if less than this is left.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// The CA is checked as of this long before its end, so that the check does not depend on the machine's clock.
const CHECKED_BEFORE_END: Duration = Duration::from_secs(60 * 60);

/// Last second of the year 9999, the latest time in a certificate.
const LATEST: u64 = 253_402_300_799;

/// Maximum length of a common name (RFC 5280, appendix A.1: ub-common-name).
const LONGEST_NAME: usize = 64;

/// The CA of a user.
#[derive(Clone, Debug)]
pub struct Authority {
    folder: PathBuf,
    facts: Facts,
    root: Root,
    issuing: CertificateDer<'static>,
}

/// A root certificate, which identifies the CA in stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    file: PathBuf,
    certificate: CertificateDer<'static>,
}

/// Facts stored beside the certificate, so that no code has to parse it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    /// Common name.
    name: String,
    /// DNS names in the constraints; each includes all names below it.
    names: Vec<String>,
    /// Seconds since 1970.
    not_after: u64,
}

impl Root {
    fn read(file: PathBuf) -> io::Result<Self> {
        let certificate = CertificateDer::from_pem_file(&file).map_err(|error| broken(&file, error))?;
        Ok(Self { file, certificate })
    }

    /// Returns all roots that a store may trust: the current one first, then replaced ones that could not be removed from every
    /// store.
    pub fn all(folder: &Path) -> Vec<Self> {
        let entries = fs::read_dir(folder.join(ROOTS)).into_iter().flatten().flatten();
        let mut recorded: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        recorded.sort();
        let mut all: Vec<Self> = Vec::new();
        for root in std::iter::once(folder.join(CERTIFICATE)).chain(recorded).filter_map(|file| Self::read(file).ok()) {
            if all.iter().all(|other| other.certificate != root.certificate) {
                all.push(root);
            }
        }
        all
    }

    /// Records that stores may trust it.
    ///
    /// # Errors
    /// The record cannot be written.
    pub fn record(&self, folder: &Path) -> io::Result<()> {
        let record = self.in_records(folder);
        match record.exists() {
            true => Ok(()),
            false => atomic_file::write(&record, pem(&self.certificate).as_bytes(), 0o644),
        }
    }

    /// Records that no store trusts it any more.
    ///
    /// # Errors
    /// The record cannot be deleted.
    pub fn forget(&self, folder: &Path) -> io::Result<()> {
        match fs::remove_file(self.in_records(folder)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn in_records(&self, folder: &Path) -> PathBuf {
        folder.join(ROOTS).join(format!("{}.pem", self.short()))
    }

    /// Returns its SHA-256 in hexadecimal.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }

    /// Returns the first 16 digits of its SHA-256, which are its name in stores.
    pub fn short(&self) -> String {
        self.fingerprint()[..16].to_owned()
    }

    /// Returns the path of the PEM file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Returns the certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }
}

impl Authority {
    /// Reads the CA. `None`: there is none.
    ///
    /// # Errors
    /// A file is missing, cannot be read, or does not match the others.
    pub fn load(folder: &Path) -> io::Result<Option<Self>> {
        let file = folder.join(FACTS);
        let facts = match fs::read(&file) {
            Ok(facts) => facts,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.join(CERTIFICATE).exists() => {
                return Ok(None);
            }
            Err(error) => return Err(of_file(&file, &error)),
        };
        let facts: Facts = serde_json::from_slice(&facts).map_err(|error| broken(&file, error))?;
        if !(2 * CHECKED_BEFORE_END.as_secs()..=LATEST).contains(&facts.not_after) {
            return Err(broken(&file, "not_after is not a date"));
        }
        let root = Root::read(folder.join(CERTIFICATE))?;
        let file = folder.join(ISSUING);
        let issuing = CertificateDer::from_pem_file(&file).map_err(|error| broken(&file, error))?;
        let authority = Self { folder: folder.to_owned(), facts, root, issuing };
        let issuer = authority.issuer()?;
        authority.check(&issuer).map_err(|error| {
            broken(folder, format!("{KEY}, {ISSUING}, {CERTIFICATE} and {FACTS} do not belong together ({error})"))
        })?;
        Ok(Some(authority))
    }

    /// Checks that a client that trusts the root accepts a certificate from this key for all names.
    fn check(&self, issuer: &Issuer<'static, KeyPair>) -> Result<(), Box<dyn std::error::Error>> {
        let at = self.facts.expires() - CHECKED_BEFORE_END;
        let mut params = CertificateParams::new(self.facts.names.clone())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        (params.not_before, params.not_after) = ((at - BACKDATE).into(), (at + BACKDATE).into());
        let leaf = params.signed_by(&KeyPair::generate()?, issuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(self.root.certificate.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        let name = ServerName::try_from(self.facts.names.first().cloned().unwrap_or_default())?;
        let now = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH)?);
        verifier.verify_server_cert(leaf.der(), std::slice::from_ref(&self.issuing), &name, &[], now)?;
        Ok(())
    }

    /// Creates a CA for `localhost` and `names`, and writes it: the key with mode 0600, in a folder with mode 0700. `owner`: such
    /// as `ana at laptop`. The root of a previous CA stays recorded.
    ///
    /// # Errors
    /// The files cannot be written, or the system has no random numbers.
    pub fn create(folder: &Path, owner: &str, names: &[String]) -> io::Result<Self> {
        let mut name = format!("adit ({owner}), local names only");
        if name.len() > LONGEST_NAME {
            name = "adit, local names only".to_owned();
        }
        let now = SystemTime::now();
        let not_after = (now + VALID).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let facts = Facts { name, names: permitted(names), not_after };
        let (mut root, mut issuing) = (facts.root(), facts.issuing());
        for params in [&mut root, &mut issuing] {
            (params.not_before, params.not_after) = ((now - BACKDATE).into(), (now + VALID).into());
        }
        let (of_root, key) =
            (KeyPair::generate().map_err(io::Error::other)?, KeyPair::generate().map_err(io::Error::other)?);
        let certificate = root.self_signed(&of_root).map_err(io::Error::other)?;
        let issuing = issuing.signed_by(&key, &Issuer::new(root, of_root)).map_err(io::Error::other)?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join(ROOTS))?;
        for known in Root::all(folder) {
            known.record(folder)?;
        }
        let root = Root { file: folder.join(CERTIFICATE), certificate: certificate.der().clone() };
        root.record(folder)?;
        atomic_file::write(&folder.join(KEY), key.serialize_pem().as_bytes(), 0o600)?;
        atomic_file::write(root.file(), certificate.pem().as_bytes(), 0o644)?;
        atomic_file::write(&folder.join(ISSUING), issuing.pem().as_bytes(), 0o644)?;
        // Write this file last: a CA without it does not count as complete.
        atomic_file::write(&folder.join(FACTS), &serde_json::to_vec_pretty(&facts).map_err(io::Error::other)?, 0o644)?;
        Ok(Self { folder: folder.to_owned(), facts, root, issuing: issuing.der().clone() })
    }

    /// Deletes the CA with its key.
    ///
    /// # Errors
    /// A file cannot be deleted.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.folder)
    }

    /// Returns the common name.
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// Returns the DNS names in the constraints; each includes all names below it.
    pub fn names(&self) -> &[String] {
        &self.facts.names
    }

    /// Returns the SHA-256 of the root certificate in hexadecimal.
    pub fn fingerprint(&self) -> String {
        self.root.fingerprint()
    }

    /// Returns the root.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Returns the root certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.root.certificate
    }

    /// Returns the intermediate certificate. Servers send it behind their own.
    pub fn issuing(&self) -> &CertificateDer<'static> {
        &self.issuing
    }

    /// Returns the path of the root's PEM file.
    pub fn file(&self) -> PathBuf {
        self.folder.join(CERTIFICATE)
    }

    /// Returns the remaining validity in days. `None`: expired.
    pub fn days_left(&self) -> Option<u64> {
        let left = self.facts.expires().duration_since(SystemTime::now()).ok()?;
        Some(left.as_secs() / (24 * 60 * 60))
    }

    /// Returns whether the CA covers all `names`, and does not expire soon.
    pub fn serves(&self, names: &[String]) -> bool {
        let lasts = self.facts.expires().duration_since(SystemTime::now()).is_ok_and(|left| left > RENEW_BEFORE);
        lasts && names.iter().all(|name| self.permits(name))
    }

    /// Returns whether the constraints permit a host, given in lower case without port.
    pub fn permits(&self, host: &str) -> bool {
        permits(&self.facts.names, host)
    }

    /// Returns the issuer of leaf certificates.
    ///
    /// # Errors
    /// The key cannot be read.
    pub fn issuer(&self) -> io::Result<Issuer<'static, KeyPair>> {
        let file = self.folder.join(KEY);
        let text = fs::read_to_string(&file).map_err(|error| of_file(&file, &error))?;
        let key = KeyPair::from_pem(&text).map_err(|error| broken(&file, error))?;
        Ok(Issuer::new(self.facts.issuing(), key))
    }
}

impl Facts {
    fn expires(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.not_after)
    }

    fn root(&self) -> CertificateParams {
        self.params(&self.name, 1)
    }

    fn issuing(&self) -> CertificateParams {
        let mut params = self.params("adit, local names only, issuing", 0);
        params.use_authority_key_identifier_extension = true;
        params
    }

    /// `below`: maximum number of CAs below this one.
    fn params(&self, name: &str, below: u8) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let dns = self.names.iter().map(|name| GeneralSubtree::DnsName(name.clone()));
        let addresses = [
            CidrSubnet::from_addr_prefix(Ipv4Addr::new(127, 0, 0, 0).into(), 8),
            CidrSubnet::from_addr_prefix(Ipv6Addr::LOCALHOST.into(), 128),
        ];
        let permitted_subtrees = dns.chain(addresses.map(GeneralSubtree::IpAddress)).collect();
        params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: Vec::new() });
        params
    }
}

fn of_file(file: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", file.display()))
}

fn broken(file: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", file.display()))
}

/// Returns the SHA-256 of a certificate in hexadecimal.
pub fn fingerprint(certificate: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(certificate))
}

/// Returns `localhost` and all `names`, without those that lie below another one.
fn permitted(names: &[String]) -> Vec<String> {
    let mut all = vec!["localhost".to_owned()];
    let mut names: Vec<&String> = names.iter().collect();
    names.sort_by_key(|name| (name.len(), *name));
    for name in names {
        if !permits(&all, name) {
            all.push(name.clone());
        }
    }
    all
}

fn permits(names: &[String], host: &str) -> bool {
    names.iter().any(|name| host == name || host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.')))
}

/// Returns a certificate as PEM.
pub(super) fn pem(certificate: &[u8]) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let text = BASE64_STANDARD.encode(certificate);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_authority_is_read_as_it_was_made_and_its_key_is_private() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("adit/ca");
        assert!(Authority::load(&folder).unwrap().is_none());
        let made = Authority::create(&folder, "ana at laptop", &["shop.test".into(), "a.shop.test".into()]).unwrap();
        let read = Authority::load(&folder).unwrap().expect("it is there");
        assert_eq!((read.fingerprint(), &read.facts), (made.fingerprint(), &made.facts));
        assert_eq!(read.name(), "adit (ana at laptop), local names only");
        assert_eq!(read.names(), ["localhost", "shop.test"]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join(KEY))), (0o700, 0o600));
        assert!(read.days_left().is_some_and(|days| (729..=730).contains(&days)));
        for (host, is_permitted) in [
            ("localhost", true),
            ("web.shop.localhost", true),
            ("shop.test", true),
            ("b.shop.test", true),
            ("notlocalhost", false),
            ("shop.test.example.com", false),
            ("example.com", false),
        ] {
            assert_eq!(read.permits(host), is_permitted, "{host}");
        }
        assert!(read.serves(&["x.localhost".into()]) && !read.serves(&["example.com".into()]));
        read.remove().unwrap();
        assert!(Authority::load(&folder).unwrap().is_none());
    }

    #[test]
    fn an_authority_that_ends_soon_serves_no_names() {
        let home = tempfile::tempdir().unwrap();
        let mut made = Authority::create(home.path(), "ana at laptop", &[]).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        for (left, serves) in [(Duration::from_secs(60), true), (Duration::ZERO, false)] {
            made.facts.not_after = (now + RENEW_BEFORE + left).as_secs();
            assert_eq!(made.serves(&["web.localhost".into()]), serves);
        }
    }

    #[test]
    fn a_file_that_is_missing_broken_or_of_another_authority_is_named() {
        let home = tempfile::tempdir().unwrap();
        let (ours, other) = (home.path().join("ours"), home.path().join("other"));
        Authority::create(&ours, "ana at laptop", &["shop.test".into()]).unwrap();
        Authority::create(&other, "ana at laptop", &["shop.test".into()]).unwrap();
        for file in [KEY, CERTIFICATE, ISSUING, FACTS] {
            let whole = fs::read(ours.join(file)).unwrap();
            let said = || Authority::load(&ours).expect_err(file).to_string();
            fs::write(ours.join(file), "").unwrap();
            assert!(said().contains(file), "{}", said());
            if file != FACTS {
                fs::copy(other.join(file), ours.join(file)).unwrap();
                assert!(said().contains(file), "{}", said());
            }
            if file != CERTIFICATE {
                fs::remove_file(ours.join(file)).unwrap();
                assert!(said().contains(file), "{}", said());
            }
            fs::write(ours.join(file), whole).unwrap();
            assert!(Authority::load(&ours).unwrap().is_some());
        }
        // More names than the certificate has, then invalid dates.
        let facts = fs::read_to_string(ours.join(FACTS)).unwrap();
        let date = facts.split("not_after\": ").nth(1).unwrap().split_whitespace().next().unwrap();
        for (part, other) in [("shop.test", "example.com"), (date, "0"), (date, "18446744073709551615")] {
            fs::write(ours.join(FACTS), facts.replace(part, other)).unwrap();
            assert!(Authority::load(&ours).is_err(), "{other}");
        }
    }

    #[test]
    fn a_root_is_known_until_it_is_forgotten() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(Root::all(home.path()), []);
        let made: Vec<Root> =
            (0..2).map(|_| Authority::create(home.path(), "ana at laptop", &[]).unwrap().root().clone()).collect();
        let known = || Root::all(home.path()).iter().map(Root::fingerprint).collect::<Vec<_>>();
        assert_eq!(known(), [made[1].fingerprint(), made[0].fingerprint()]);
        fs::write(home.path().join(CERTIFICATE), "").unwrap();
        assert_eq!(known().len(), 2, "the file is broken, and the record is not");
        for root in &made {
            root.forget(home.path()).unwrap();
        }
        assert_eq!(known().len(), 0);
    }

    #[test]
    fn a_name_is_no_longer_than_certificates_allow() {
        let home = tempfile::tempdir().unwrap();
        assert!(Authority::create(home.path(), &"x".repeat(100), &[]).unwrap().name().len() <= LONGEST_NAME);
    }
}
