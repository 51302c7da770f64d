//! Environment variables for programs that ask no store of the system.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::Authority;

/// The CA bundle of the system and of the authority: what `SSL_CERT_FILE` names replaces the system's.
const BUNDLE: &str = "bundle.pem";

/// Writes the bundle, and returns the variables in order: Node, then OpenSSL (Python, Ruby, curl), then Python's requests.
///
/// # Errors
/// The bundle cannot be written.
pub fn write(authority: &Authority, folder: &Path) -> io::Result<Vec<(&'static str, PathBuf)>> {
    let bundle = folder.join(BUNDLE);
    let mut text = String::new();
    for certificate in rustls_native_certs::load_native_certs().certs {
        text += &pem(&certificate);
    }
    text += &pem(authority.certificate());
    fs::write(&bundle, text)?;
    Ok(variables(authority, folder))
}

/// Returns the variables, whose bundle has been written before.
pub fn variables(authority: &Authority, folder: &Path) -> Vec<(&'static str, PathBuf)> {
    let bundle = folder.join(BUNDLE);
    vec![("NODE_EXTRA_CA_CERTS", authority.file()), ("SSL_CERT_FILE", bundle.clone()), ("REQUESTS_CA_BUNDLE", bundle)]
}

fn pem(certificate: &[u8]) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let text = BASE64_STANDARD.encode(certificate);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, pem::PemObject};

    use super::*;

    #[test]
    fn the_bundle_ends_with_the_authority() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path(), "ana at laptop", &[]).unwrap();
        let variables = write(&authority, folder.path()).unwrap();
        let bundle = fs::read(&variables[1].1).unwrap();
        let all: Vec<_> = CertificateDer::pem_slice_iter(&bundle).collect::<Result<_, _>>().unwrap();
        assert_eq!(all.last(), Some(authority.certificate()));
    }
}
