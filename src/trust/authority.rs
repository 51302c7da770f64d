//! The authority: a key, and a certificate that can vouch for local names alone.
//!
//! Its name constraints are critical (RFC 5280, section 4.2.1.10): a thief of the key cannot impersonate the internet. A constraint on
//! DNS names alone would leave addresses free, so both are there. Java does not hold a root to its constraints, only the certificates
//! below it. So the root signs one certificate, which has the same constraints and issues all others, and its own key is written nowhere.

use std::{
    fs,
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The key of the issuing certificate.
const KEY: &str = "key.pem";
/// The root, which stores trust.
const CERTIFICATE: &str = "cert.pem";
const ISSUING: &str = "issuing.pem";
const FACTS: &str = "authority.json";

/// Two years: Apple takes no more than 825 days of what it did not issue.
const VALID: Duration = Duration::from_secs(2 * 365 * 24 * 60 * 60);

/// Clocks of laptops and their browsers are not the same.
const BACKDATE: Duration = Duration::from_secs(60 * 60);

/// An authority is made anew when less than this is left of it.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// The longest common name (RFC 5280, appendix A.1: ub-common-name).
const LONGEST_NAME: usize = 64;

/// The authority of a user.
#[derive(Clone, Debug)]
pub struct Authority {
    folder: PathBuf,
    facts: Facts,
    certificate: CertificateDer<'static>,
    issuing: CertificateDer<'static>,
}

/// Facts stored beside the certificate, so that nobody has to parse it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    /// The common name.
    name: String,
    /// The DNS names that it may vouch for, each with all below it.
    names: Vec<String>,
    /// Seconds since 1970.
    not_after: u64,
}

impl Authority {
    /// Reads the authority. None: there is none.
    ///
    /// # Errors
    /// A file of it cannot be read, or is not what was written.
    pub fn load(folder: &Path) -> io::Result<Option<Self>> {
        let facts = match fs::read(folder.join(FACTS)) {
            Ok(facts) => facts,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let broken = |error: &dyn std::fmt::Display| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", folder.display()))
        };
        let facts = serde_json::from_slice(&facts).map_err(|error| broken(&error))?;
        let certificate = |file| CertificateDer::from_pem_file(folder.join(file)).map_err(|error| broken(&error));
        let (certificate, issuing) = (certificate(CERTIFICATE)?, certificate(ISSUING)?);
        Ok(Some(Self { folder: folder.to_owned(), facts, certificate, issuing }))
    }

    /// Makes one for `localhost` and `names`, and writes it: the key with mode 0600, in a folder of mode 0700. `owner`: `ana at
    /// laptop`.
    ///
    /// # Errors
    /// It cannot be written, or the system gives no random numbers.
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
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        write(&folder.join(KEY), key.serialize_pem().as_bytes(), 0o600)?;
        write(&folder.join(CERTIFICATE), certificate.pem().as_bytes(), 0o644)?;
        write(&folder.join(ISSUING), issuing.pem().as_bytes(), 0o644)?;
        // The last one: with it the authority is there.
        write(&folder.join(FACTS), &serde_json::to_vec_pretty(&facts).map_err(io::Error::other)?, 0o644)?;
        let (certificate, issuing) = (certificate.der().clone(), issuing.der().clone());
        Ok(Self { folder: folder.to_owned(), facts, certificate, issuing })
    }

    /// Deletes it with its key.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.folder)
    }

    /// Returns the common name.
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// Returns the DNS names that it may vouch for, each with all below it.
    pub fn names(&self) -> &[String] {
        &self.facts.names
    }

    /// Returns the SHA-256 of the certificate, in hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }

    /// Returns the root.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Returns the certificate that issues leaves: servers send it behind theirs.
    pub fn issuing(&self) -> &CertificateDer<'static> {
        &self.issuing
    }

    /// Returns the PEM file of the certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.join(CERTIFICATE)
    }

    /// Returns for how many days it is valid. None: it has expired.
    pub fn days_left(&self) -> Option<u64> {
        let left = self.facts.expires().duration_since(SystemTime::now()).ok()?;
        Some(left.as_secs() / (24 * 60 * 60))
    }

    /// Returns whether it vouches for all `names`, and for long enough.
    pub fn serves(&self, names: &[String]) -> bool {
        let lasts = self.facts.expires().duration_since(SystemTime::now()).is_ok_and(|left| left > RENEW_BEFORE);
        lasts && names.iter().all(|name| self.permits(name))
    }

    /// Returns whether it may vouch for a host: lower case, without port.
    pub fn permits(&self, host: &str) -> bool {
        permits(&self.facts.names, host)
    }

    /// Returns what signs leaves.
    ///
    /// # Errors
    /// The key cannot be read.
    pub fn issuer(&self) -> io::Result<Issuer<'static, KeyPair>> {
        let key = KeyPair::from_pem(&fs::read_to_string(self.folder.join(KEY))?).map_err(io::Error::other)?;
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

    /// `below`: how many CAs there may be below this one.
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

/// Returns the SHA-256 of a certificate, in hexadecimal digits.
pub fn fingerprint(certificate: &[u8]) -> String {
    Sha256::digest(certificate).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns `localhost`, and what does not lie below it or another one.
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

/// Writes a file as a whole, or not at all.
pub(super) fn write(file: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    // Several processes may be at it.
    let temporary = file.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let mut open = fs::OpenOptions::new();
    open.write(true).create_new(true).mode(mode).open(&temporary)?.write_all(content)?;
    fs::rename(temporary, file)
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
    fn what_is_broken_is_said() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(FACTS), "{").unwrap();
        assert!(Authority::load(home.path()).is_err());
        assert!(Authority::create(home.path(), &"x".repeat(100), &[]).unwrap().name().len() <= LONGEST_NAME);
    }
}
