//! The TLS frontend, from a client to a pod of the demo.

use std::{net::SocketAddr, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::TestApp;

/// Verifier that accepts every certificate, so that the tests can look at it.
#[derive(Debug)]
struct Anything;

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

async fn connect(app: &TestApp, name: &str) -> TlsStream<TcpStream> {
    connect_to(app.http, name).await
}

/// Connects, and accepts every certificate.
pub async fn connect_to(listener: SocketAddr, name: &str) -> TlsStream<TcpStream> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Anything)).with_no_client_auth();
    let stream = TcpStream::connect(listener).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await.unwrap()
}

pub async fn get(app: &TestApp, name: &str) -> (String, String) {
    let mut stream = connect(app, name).await;
    let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    stream
        .write_all(format!("GET /headers HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = Vec::new();
    // A pod may close without close_notify.
    let _ = stream.read_to_end(&mut answer).await;
    (String::from_utf8_lossy(&certificate).into_owned(), String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn an_https_backend_shows_its_own_certificate() {
    let app = TestApp::start("").await;
    let (certificate, answer) = get(&app, "443.tools.shop.localhost").await;
    assert!(certificate.contains("tools.shop.svc"), "not the pod's certificate");
    assert!(
        answer.contains("200 OK") && answer.contains("\"tls\": true") && !answer.contains("x-forwarded-for"),
        "{answer}"
    );
    app.finish().await;
}

#[tokio::test]
async fn a_port_that_says_nothing_is_asked_whether_it_speaks_tls() {
    let app = TestApp::start("").await;
    let (certificate, answer) = get(&app, "tools-0-8443.pod.shop.ns.demo.cx.k8s.localhost").await;
    assert!(certificate.contains("tools.shop.svc") && answer.contains("\"tls\": true"), "{answer}");
    let (certificate, answer) = get(&app, "tools-0-8080.pod.shop.ns.demo.cx.k8s.localhost").await;
    assert!(!certificate.contains("tools.shop.svc") && answer.contains("\"tls\": false"), "{answer}");
    app.finish().await;
}

#[tokio::test]
async fn a_plain_backend_is_proxied_behind_a_minted_certificate() {
    let app = TestApp::start("").await;
    let (certificate, answer) = get(&app, "web.shop.localhost").await;
    assert!(certificate.contains("web.shop.localhost"));
    assert!(answer.contains("\"tls\": false"), "{answer}");
    let forwarded = answer.replace([' ', '\n'], "");
    assert!(forwarded.contains("\"x-forwarded-proto\",\"https\""), "{answer}");
    app.finish().await;
}

#[tokio::test]
async fn an_unknown_name_gets_a_page_behind_a_certificate_for_it() {
    let app = TestApp::start("").await;
    let (certificate, answer) = get(&app, "nobody.knows.example").await;
    assert!(certificate.contains("nobody.knows.example"));
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("no route for nobody.knows.example"), "{answer}");
    app.finish().await;
}

#[tokio::test]
async fn an_https_port_that_refuses_gets_a_page() {
    let app = TestApp::start("").await;
    app.demo.faults().refuse(8443, true);
    let (certificate, answer) = get(&app, "443.tools.shop.localhost").await;
    assert!(certificate.contains("443.tools.shop.localhost"));
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("refused the connection on port 8443"), "{answer}");
    app.demo.faults().refuse(8443, false);
    assert!(get(&app, "443.tools.shop.localhost").await.0.contains("tools.shop.svc"), "not the pod's certificate");
    app.finish().await;
}
