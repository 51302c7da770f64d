//! CA bundle of the system.
//!
//! On Linux it is what Go reads (crypto/x509, root_unix.go): the first file that exists, and all files of some folders.
//! `SSL_CERT_FILE` replaces the files, and `SSL_CERT_DIR` the folders, separately.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{crypto::CryptoProvider, pki_types::CertificateDer};

use super::bundle::{self, Bundle};

const FILES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const FOLDERS: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];

/// Returns the CA bundle of the system. It is empty if there is none.
pub fn bundle(provider: &Arc<CryptoProvider>) -> Bundle {
    let certificates = match cfg!(target_os = "linux") {
        true => of_files(variable("SSL_CERT_FILE"), variable("SSL_CERT_DIR")),
        false => rustls_native_certs::load_native_certs().certs,
    };
    Bundle::new(certificates, provider)
}

fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn of_files(file: Option<OsString>, folders: Option<OsString>) -> Vec<CertificateDer<'static>> {
    let files = file.map_or_else(|| FILES.map(PathBuf::from).to_vec(), |file| vec![file.into()]);
    let folders =
        folders.map_or_else(|| FOLDERS.map(PathBuf::from).to_vec(), |folders| env::split_paths(&folders).collect());
    let first = files.iter().find_map(|file| fs::read(file).ok());
    let others = folders.iter().flat_map(|folder| files_in(folder)).filter_map(|file| fs::read(file).ok());
    // The folders have each certificate several times: by its name, by its hash, and in the file of all.
    let certificates: BTreeSet<Vec<u8>> = first
        .into_iter()
        .chain(others)
        .flat_map(|text| bundle::certificates(&text))
        .map(|certificate| certificate.to_vec())
        .collect();
    certificates.into_iter().map(CertificateDer::from).collect()
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    // A pipe would never end.
    entries.filter(|path| path.is_file()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_the_files_of_all_folders_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let certificate = || rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        let (one, two, three) = (certificate(), certificate(), certificate());
        fs::create_dir_all(path("a/below")).unwrap();
        fs::create_dir(path("b")).unwrap();
        fs::write(path("file"), &one).unwrap();
        fs::write(path("a/1"), format!("{one}{two}")).unwrap();
        fs::write(path("b/2"), &three).unwrap();
        fs::write(path("b/no.pem"), "none").unwrap();
        let of = |file: &str, folders: &str| of_files(Some(path(file).into()), Some(folders.into())).len();
        let both = format!("{}:{}", path("a").display(), path("b").display());
        assert_eq!(of("file", &both), 3);
        assert_eq!(of("file", "/nowhere"), 1);
        assert_eq!(of("nowhere", &both), 3);
        assert_eq!(of("nowhere", "/nowhere"), 0);
    }
}
