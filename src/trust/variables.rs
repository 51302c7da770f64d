//! Environment variables for programs that do not use the system's store.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};

use super::authority::{Authority, pem};
use crate::atomic_file;

/// Start and end of a CA bundle's name. With additional sources, their digest is in between.
const BUNDLE: (&str, &str) = ("bundle", ".pem");

/// Prefix of a source in the first lines of a bundle.
const FROM: &str = "# from ";

/// Variables with the path of a CA file. Except for Node, a program that reads one of them trusts no other CA.
const NAMING: [&str; 4] = ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", NODE];

/// Node adds this file to its own CAs.
const NODE: &str = "NODE_EXTRA_CA_CERTS";

/// CA bundles of systems: Debian and Alpine, Fedora, openSUSE, others.
const OF_SYSTEM: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Writes the CA bundle, and returns the variables with its path.
///
/// The bundle has the system's CAs, those of the files that the environment sets, and adit's CA last. If the environment sets a
/// bundle of adit's, the sources of that bundle are used instead, because the CA in it may be outdated.
///
/// # Errors
/// The bundle cannot be written.
pub fn write(authority: &Authority, folder: &Path) -> io::Result<Vec<(&'static str, PathBuf)>> {
    write_for(authority, folder, |name| env::var_os(name))
}

fn write_for(
    authority: &Authority,
    folder: &Path,
    environment: impl Fn(&str) -> Option<OsString>,
) -> io::Result<Vec<(&'static str, PathBuf)>> {
    let named = |name: &str| Some(absolute(environment(name).filter(|value| !value.is_empty())?.into()));
    let (ours, others): (Vec<PathBuf>, Vec<PathBuf>) =
        NAMING.iter().chain(&["SSL_CERT_DIR"]).filter_map(|name| named(name)).partition(|file| is_below(file, folder));
    let system = OF_SYSTEM.iter().map(PathBuf::from).find(|file| file.is_file() && !cfg!(target_os = "macos"));
    let is_of_system = |file: &PathBuf| {
        let is = |other: &Path| matches!((file.canonicalize(), other.canonicalize()), (Ok(a), Ok(b)) if a == b);
        system.as_ref().is_some_and(|system| is(system) || (file.is_dir() && system.parent().is_some_and(is)))
    };
    let mut sources: BTreeSet<PathBuf> = ours.iter().flat_map(|bundle| sources(bundle)).collect();
    sources.extend(others.into_iter().filter(|file| !is_of_system(file)));

    let bundle = folder.join(name(&sources));
    let mut certificates = match &system {
        Some(file) => certificates(file),
        // On macOS, SSL_CERT_FILE replaces the keychain, so the system's CAs cannot be read then; keep those of the existing
        // bundle.
        None if named("SSL_CERT_FILE").is_some_and(|file| is_below(&file, folder)) => but_the_last(&bundle),
        None => rustls_native_certs::load_native_certs().certs,
    };
    certificates.extend(sources.iter().flat_map(|file| self::certificates(file)));
    write_bundle(&bundle, &sources, certificates, authority)?;
    let of_node = match named(NODE) {
        Some(file) if file != authority.file() => bundle.clone(),
        _ => authority.file(),
    };
    Ok(vec![
        (NODE, of_node),
        ("SSL_CERT_FILE", bundle.clone()),
        ("REQUESTS_CA_BUNDLE", bundle.clone()),
        ("CURL_CA_BUNDLE", bundle),
    ])
}

/// Replaces the CA in existing bundles, whose paths shells may have set.
///
/// # Errors
/// A bundle cannot be written.
pub fn renew(authority: &Authority, folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let file = entry?.path();
        let is_bundle = |name: &str| name.starts_with(BUNDLE.0) && name.ends_with(BUNDLE.1);
        if file.file_name().and_then(|name| name.to_str()).is_some_and(is_bundle) {
            write_bundle(&file, &sources(&file), but_the_last(&file), authority)?;
        }
    }
    Ok(())
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

fn is_below(file: &Path, folder: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    file.starts_with(folder) || real(file).starts_with(real(folder))
}

/// Returns the name of the bundle with these sources. Shells with different sources have different bundles.
fn name(sources: &BTreeSet<PathBuf>) -> String {
    if sources.is_empty() {
        return BUNDLE.0.to_owned() + BUNDLE.1;
    }
    let mut digest = Sha256::new();
    for source in sources {
        digest.update(source.as_os_str().as_encoded_bytes());
        digest.update(b"\0");
    }
    let digits = HEXLOWER.encode(&digest.finalize()[..6]);
    format!("{}-{digits}{}", BUNDLE.0, BUNDLE.1)
}

/// Returns the sources of a bundle, beside the system's CAs.
fn sources(bundle: &Path) -> BTreeSet<PathBuf> {
    let text = fs::read_to_string(bundle).unwrap_or_default();
    text.lines().map_while(|line| line.strip_prefix(FROM)).map(PathBuf::from).collect()
}

fn but_the_last(bundle: &Path) -> Vec<CertificateDer<'static>> {
    let mut all = certificates(bundle);
    all.pop();
    all
}

/// Returns the certificates of a file, or of a folder in OpenSSL's layout. Empty if it cannot be read: programs could not read it
/// either.
fn certificates(path: &Path) -> Vec<CertificateDer<'static>> {
    if path.is_dir() {
        return rustls_native_certs::load_certs_from_paths(None, Some(path)).certs;
    }
    let all = CertificateDer::pem_file_iter(path).into_iter().flatten();
    all.filter_map(Result::ok).collect()
}

fn write_bundle(
    file: &Path,
    sources: &BTreeSet<PathBuf>,
    certificates: Vec<CertificateDer<'static>>,
    authority: &Authority,
) -> io::Result<()> {
    // A path with a line break could not be read back.
    let shown = sources.iter().map(|source| source.display().to_string()).filter(|source| !source.contains('\n'));
    let mut text: String = shown.map(|source| format!("{FROM}{source}\n")).collect();
    let mut seen = BTreeSet::from([authority.certificate().to_vec()]);
    for certificate in certificates {
        if seen.insert(certificate.to_vec()) {
            text += &pem(&certificate);
        }
    }
    text += &pem(authority.certificate());
    // Replace the file as a whole, because starting programs may be reading it.
    match fs::read(file) {
        Ok(there) if there == text.as_bytes() => Ok(()),
        _ => atomic_file::write(file, text.as_bytes(), 0o644),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shell {
        folder: tempfile::TempDir,
        variables: Vec<(&'static str, PathBuf)>,
    }

    impl Shell {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap(), variables: Vec::new() }
        }

        fn ours(&self) -> PathBuf {
            self.folder.path().join("ca")
        }

        fn authority(&self) -> Authority {
            Authority::create(&self.ours(), "ana at laptop", &[]).unwrap()
        }

        /// Writes a file with a CA that the system does not know, and returns both.
        fn other(&self, name: &str) -> (PathBuf, CertificateDer<'static>) {
            let made = Authority::create(&self.folder.path().join(name), name, &[]).unwrap();
            (made.file(), made.certificate().clone())
        }

        fn set(&mut self, name: &'static str, value: &Path) {
            self.variables.retain(|(other, _)| *other != name);
            self.variables.push((name, value.to_owned()));
        }

        /// Writes the bundle, and returns the variables and its certificates.
        fn write(&self, authority: &Authority) -> (Vec<(&'static str, PathBuf)>, Vec<CertificateDer<'static>>) {
            let value = |name: &str| Some(self.variables.iter().find(|(other, _)| *other == name)?.1.clone().into());
            let variables = write_for(authority, &self.ours(), value).unwrap();
            let bundle = certificates(&variables[1].1);
            (variables, bundle)
        }

        fn eval(&mut self, authority: &Authority) -> Vec<CertificateDer<'static>> {
            let (variables, bundle) = self.write(authority);
            variables.iter().for_each(|(name, value)| self.set(name, value));
            bundle
        }
    }

    #[test]
    fn the_bundle_has_the_cas_that_the_environment_names_and_ends_with_the_authority() {
        let mut shell = Shell::new();
        let authority = shell.authority();
        let (plain, system) = shell.write(&authority);
        assert_eq!(system.last(), Some(authority.certificate()));
        assert_eq!(plain[0].1, authority.file());
        let (corporate, of_corporation) = shell.other("corporate");
        let (extra, of_extra) = shell.other("extra");
        shell.set("CURL_CA_BUNDLE", &corporate);
        shell.set("REQUESTS_CA_BUNDLE", &corporate);
        shell.set("NODE_EXTRA_CA_CERTS", &extra);
        shell.set("SSL_CERT_FILE", &shell.folder.path().join("not-there.pem"));
        let (variables, bundle) = shell.write(&authority);
        assert_eq!(bundle.last(), Some(authority.certificate()));
        assert_eq!(bundle.len(), system.len() + 2, "those of the two files, once each");
        assert!(bundle.contains(&of_corporation) && bundle.contains(&of_extra));
        assert!(
            variables.iter().all(|(_, file)| *file == variables[1].1),
            "Node had a file, and has the bundle: {variables:?}"
        );
        assert_ne!(variables[1].1, plain[1].1, "a shell without those files does not get their CAs");
        assert_eq!(certificates(&plain[1].1), system);
    }

    #[test]
    fn a_shell_that_names_a_bundle_keeps_its_cas_and_loses_the_old_authority() {
        let mut shell = Shell::new();
        let old = shell.authority();
        let (corporate, of_corporation) = shell.other("corporate");
        shell.set("SSL_CERT_FILE", &corporate);
        let before = shell.eval(&old);
        assert_eq!(shell.eval(&old), before, "twice is once");
        let file = shell.variables.iter().find(|(name, _)| *name == "SSL_CERT_FILE").unwrap().1.clone();
        let new = shell.authority();
        renew(&new, &shell.ours()).unwrap();
        for bundle in [certificates(&file), shell.eval(&new), shell.eval(&new)] {
            assert!(bundle.contains(&of_corporation) && !bundle.contains(old.certificate()));
            assert_eq!((bundle.len(), bundle.last()), (before.len(), Some(new.certificate())));
        }
        assert_eq!(certificates(&file), shell.eval(&new), "it is the same file");
        fs::remove_file(&corporate).unwrap();
        assert!(!shell.eval(&new).contains(&of_corporation), "its file is gone");
    }

    #[test]
    fn node_alone_may_name_the_certificate() {
        let mut shell = Shell::new();
        let authority = shell.authority();
        for _ in 0..2 {
            shell.eval(&authority);
            assert_eq!(shell.variables.iter().find(|(name, _)| *name == NODE).unwrap().1, authority.file());
        }
    }
}
