//! Access to the demo cluster: certificates, tokens, and the kubeconfig in its folder.

use std::{
    fs,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use data_encoding::HEXLOWER;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PublicKeyData, SanType};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use sha2::{Digest, Sha256};

use super::objects::NAMESPACE;

/// A user of the demo cluster, identified by the token of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// May do everything.
    Demo,
    /// May only ask about its own permissions.
    Nobody,
}

impl User {
    pub fn name(self) -> &'static str {
        match self {
            Self::Demo => "demo",
            Self::Nobody => "nobody",
        }
    }
}

/// The tokens of both users.
#[derive(Clone, Debug)]
pub struct Tokens {
    demo: String,
    nobody: String,
}

impl Tokens {
    pub fn new() -> io::Result<Self> {
        // The hash of a private key that is discarded is as random as the key.
        let token = || {
            let key = KeyPair::generate().map_err(io::Error::other)?;
            let digest = Sha256::digest(key.der_bytes());
            Ok::<_, io::Error>(HEXLOWER.encode(&digest))
        };
        Ok(Self { demo: token()?, nobody: token()? })
    }

    /// Returns the user of an `Authorization` header. `None`: the token is unknown.
    pub fn user(&self, authorization: &str) -> Option<User> {
        let token = authorization.strip_prefix("Bearer ")?.trim();
        [(User::Demo, &self.demo), (User::Nobody, &self.nobody)]
            .into_iter()
            .find(|(_, known)| *known == token)
            .map(|(user, _)| user)
    }
}

/// The CA of the API server.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: String,
}

impl Authority {
    pub fn new() -> io::Result<Self> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::new(Vec::<String>::new()).map_err(io::Error::other)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).map_err(io::Error::other)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Returns the TLS settings of the API server. Upgrades need HTTP/1.1; all other requests may use HTTP/2.
    pub fn server(&self) -> io::Result<Arc<ServerConfig>> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params =
            CertificateParams::new(["kubernetes".to_owned(), "localhost".to_owned()]).map_err(io::Error::other)?;
        params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        let certificate = params.signed_by(&key, &self.issuer).map_err(io::Error::other)?;
        tls(certificate.der().clone(), &key, &[b"h2", b"http/1.1"])
    }
}

/// Returns the TLS settings of a site in a pod, with a self-signed certificate.
pub fn site(name: &str) -> io::Result<Arc<ServerConfig>> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let params = CertificateParams::new([name.to_owned(), "localhost".to_owned()]).map_err(io::Error::other)?;
    let certificate = params.self_signed(&key).map_err(io::Error::other)?;
    tls(certificate.der().clone(), &key, &[b"http/1.1"])
}

fn tls(certificate: CertificateDer<'static>, key: &KeyPair, alpn: &[&[u8]]) -> io::Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(io::Error::other)?;
    let mut config =
        builder.with_no_client_auth().with_single_cert(vec![certificate], key).map_err(io::Error::other)?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A temporary folder with the kubeconfig, readable only by its owner, and deleted on drop.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    pub fn new() -> io::Result<Self> {
        let base = std::env::temp_dir();
        // A process has few demos; more names are for leftovers of dead processes with the same id.
        for attempt in 0..1000 {
            let path = base.join(format!("adit-demo-{}-{attempt}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("no free folder in {}", base.display())))
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.path.join("kubeconfig")
    }

    pub fn write_kubeconfig(&self, server: SocketAddr, authority: &str, tokens: &Tokens) -> io::Result<()> {
        write_secret(&self.kubeconfig(), &kubeconfig(server, authority, tokens))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // If it fails, the system cleans its temporary folder later.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

fn kubeconfig(server: SocketAddr, authority: &str, tokens: &Tokens) -> String {
    let authority = STANDARD.encode(authority);
    let Tokens { demo, nobody } = tokens;
    format!(
        "apiVersion: v1
kind: Config
current-context: demo
clusters:
- {{name: demo, cluster: {{server: \"https://{server}\", certificate-authority-data: {authority}}}}}
users:
- {{name: demo, user: {{token: \"{demo}\"}}}}
- {{name: nobody, user: {{token: \"{nobody}\"}}}}
contexts:
- {{name: demo, context: {{cluster: demo, user: demo, namespace: {NAMESPACE}}}}}
- {{name: demo-nobody, context: {{cluster: demo, user: nobody, namespace: {NAMESPACE}}}}}
"
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_kubeconfig_is_for_its_owner_only_and_goes_with_its_folder() {
        let (folder, tokens) = (Folder::new().unwrap(), Tokens::new().unwrap());
        let path = folder.kubeconfig();
        folder.write_kubeconfig(([127, 0, 0, 1], 6443).into(), "authority", &tokens).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        drop(folder);
        assert!(!path.parent().unwrap().exists());
    }

    #[test]
    fn a_token_is_one_users_and_nobody_elses() {
        let tokens = Tokens::new().unwrap();
        assert_eq!(tokens.user(&format!("Bearer {}", tokens.demo)), Some(User::Demo));
        assert_eq!(tokens.user(&format!("Bearer {}", tokens.nobody)), Some(User::Nobody));
        assert_eq!(tokens.user(&format!("Bearer {}x", tokens.demo)), None);
        assert_eq!(tokens.user("Bearer "), None);
        assert_eq!(tokens.user(""), None);
    }
}
