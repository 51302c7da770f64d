//! Refusals of database clients in their own protocol: an RST gives no reason, and a TLS alert hardly one.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{greeting::end_with, read_only::ReadOnly};
use crate::{
    config::{PortRef, Workload},
    io::{BoxedIo, prefixed::Prefixed, read_ahead::ReadAhead},
    routing::{PortProtocol, RouteError, Target},
    tunnel::{OpenError, StreamFault},
    wire::{
        database::{Database, is_resp, mysql_error, redis_error},
        postgres::{self, First},
    },
};

/// Timeout for a client's first bytes, which it sends at once.
const FIRST_WORDS: Duration = Duration::from_millis(300);

/// Timeout for a client to read its refusal.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reason for a refusal, as the client shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub message: String,
    /// What to do; empty: no specific advice.
    pub hint: String,
}

impl Refusal {
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }

    /// Returns the refusal of PostgreSQL without TLS, which sends no server name.
    pub fn plain_postgres() -> Self {
        let hint = "connect with sslmode=require and a host name, or through a route of tcp.k8s.routes";
        Self::new("without TLS there is no server name to route by", hint)
    }

    /// Returns the refusal of TLS without a server name.
    pub fn nameless() -> Self {
        let hint = "connect with psql 14 or newer and a host name (host=db.shop.localhost hostaddr=127.0.0.1), or through a route of \
                    tcp.k8s.routes";
        Self::new("this client sends no TLS server name (SNI) to route by", hint)
    }

    pub fn of_route(error: &RouteError) -> Self {
        Self::new(error.to_string(), error.hint().unwrap_or_default())
    }

    /// Returns the refusal of a context that accepts only some HTTP methods.
    pub fn of_rule(rule: &ReadOnly) -> Self {
        Self::new(rule.title(), format!("lift this for a while: {}", rule.unlock()))
    }

    pub fn of_open(error: &OpenError) -> Self {
        let message = error.cause().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
        Self::new(message, error.hint().unwrap_or_default())
    }

    pub fn of_stream(fault: &StreamFault, target: &Target) -> Self {
        let hint = match fault {
            StreamFault::Refused { .. } => {
                "does the server run in the pod, and listen on the port that the Service names?"
            }
            _ => "",
        };
        Self::new(format!("{target}: {fault}"), hint)
    }

    /// Returns message and hint in one line, for protocols that have no field for a hint.
    fn line(&self) -> String {
        match self.hint.is_empty() {
            true => format!("adit: {}", self.message),
            false => format!("adit: {} (hint: {})", self.message, self.hint),
        }
    }

    /// Returns an ErrorResponse of PostgreSQL.
    pub fn of_postgres(&self) -> Vec<u8> {
        // SQLSTATE 08004: sqlserver_rejected_establishment_of_sqlconnection.
        postgres::fatal("08004", &self.message, &self.hint)
    }
}

/// Returns the database of a target, by the number or name of its port, the local port, or the name of its workload.
pub fn database_of(target: &Target, local_port: u16) -> Option<Database> {
    let by_number = |port: u16| PortProtocol::of_number(port).and_then(PortProtocol::database);
    let by_name = |name: &str| PortProtocol::of_name(name).and_then(PortProtocol::database);
    let pods = target.pods();
    let of_port = pods.and_then(|pods| match (&pods.jump, &pods.port) {
        (Some(jump), _) => by_number(jump.target.port.get()),
        (None, PortRef::Number(port)) => by_number(port.get()),
        (None, PortRef::Name(name)) => by_name(name),
        (None, PortRef::Auto | PortRef::Https) => None,
    });
    let of_workload = || match &pods?.workload {
        Workload::Service(name) => by_name(name),
        Workload::Pod(name) => by_name(name),
        Workload::PodOfService { service, .. } => by_name(service),
        Workload::Address(_) => None,
    };
    of_port.or_else(|| by_number(local_port)).or_else(of_workload)
}

/// Refuses a client in its own protocol, and waits until it has read that. Returns false, with nothing written, if the protocol
/// is not known.
///
/// `received`: the client's first bytes. `database`: the server's likely protocol.
pub async fn refuse<S>(
    stream: &mut S,
    received: BytesMut,
    database: Option<Database>,
    refusal: &Refusal,
    tls: &Arc<ServerConfig>,
) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    if database == Some(Database::MySql) {
        end_with(stream, &mysql_error(&refusal.line())).await;
        return true;
    }
    let patience = if database.is_some() { FIRST_WORDS } else { Duration::ZERO };
    let received = first_words(stream, received, patience).await;
    if is_resp(&received) {
        end_with(stream, &redis_error(&refusal.line())).await;
        return true;
    }
    match postgres::first(&received) {
        First::NeedMore | First::Other => false,
        First::Cancel => true,
        First::SslRequest | First::GssEncRequest | First::Startup => {
            // The client may be gone already.
            let _ = timeout(PATIENCE, refuse_postgres(stream, received, refusal, tls)).await;
            true
        }
    }
}

/// Reads until the client's protocol is known, or `patience` is over.
pub async fn first_words<S: AsyncRead + Unpin>(stream: &mut S, mut received: BytesMut, patience: Duration) -> BytesMut {
    let is_known = |bytes: &[u8]| is_resp(bytes) || !matches!(postgres::first(bytes), First::NeedMore);
    let reading =
        async { while !is_known(&received) && stream.read_buf(&mut received).await.is_ok_and(|count| count > 0) {} };
    // `timeout` polls the read once, even with a `patience` of 0.
    let _ = timeout(patience, reading).await;
    received
}

/// Answers requests for encryption, and then the start-up message with an error.
async fn refuse_postgres<S>(stream: &mut S, mut received: BytesMut, refusal: &Refusal, tls: &Arc<ServerConfig>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    loop {
        match postgres::first(&received) {
            First::SslRequest => {
                if stream.write_all(b"S").await.is_err() || stream.flush().await.is_err() {
                    return;
                }
                return refuse_encrypted(stream, refusal, tls).await;
            }
            First::GssEncRequest => {
                received.clear();
                if stream.write_all(b"N").await.is_err() || stream.flush().await.is_err() {
                    return;
                }
            }
            First::Startup => return end_with(stream, &refusal.of_postgres()).await,
            First::Cancel | First::Other => return,
            First::NeedMore => {}
        }
        if !stream.read_buf(&mut received).await.is_ok_and(|count| count > 0) {
            return;
        }
    }
}

/// Refuses a PostgreSQL client that begins with TLS, behind a certificate that no CA has signed.
async fn refuse_encrypted<S>(stream: &mut S, refusal: &Refusal, tls: &Arc<ServerConfig>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let Ok(mut stream) = TlsAcceptor::from(tls.clone()).accept(stream).await else { return };
    let mut received = BytesMut::new();
    while postgres::whole(&received).is_none() {
        if postgres::first(&received) == First::Other
            || !stream.read_buf(&mut received).await.is_ok_and(|count| count > 0)
        {
            return;
        }
    }
    if postgres::first(&received) == First::Startup {
        end_with(&mut stream, &refusal.of_postgres()).await;
    }
}

/// Refuses a PostgreSQL client whose ClientHello was read.
pub async fn refuse_greeted(stream: BoxedIo, hello: Bytes, refusal: &Refusal, tls: &Arc<ServerConfig>) {
    let mut stream = ReadAhead::new(Prefixed::new(hello, stream));
    let _ = timeout(PATIENCE, refuse_encrypted(&mut stream, refusal, tls)).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::frontend::certs::Certs;

    async fn told(asked: &'static [u8], database: Option<Database>) -> (bool, String) {
        let (mut near, mut far) = duplex(1 << 16);
        let tls = Arc::<Certs>::default().server_config(&[]).unwrap();
        let refusal = Refusal::new("no Service dbx in shop", "did you mean db?");
        let client = tokio::spawn(async move {
            near.write_all(asked).await.unwrap();
            near.shutdown().await.unwrap();
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            String::from_utf8_lossy(&answer).into_owned()
        });
        tokio::task::yield_now().await;
        let is_known = refuse(&mut far, BytesMut::new(), database, &refusal, &tls).await;
        drop(far);
        (is_known, client.await.unwrap())
    }

    #[tokio::test]
    async fn each_client_is_told_in_its_own_protocol() {
        let startup = b"\0\0\0\x13\0\x03\0\0user\0demo\0\0";
        for database in [None, Some(Database::Postgres), Some(Database::Redis)] {
            let (is_known, answer) = told(startup, database).await;
            assert!(is_known && answer.starts_with('E') && answer.contains("Mno Service dbx"), "{answer}");
            assert!(answer.contains("Hdid you mean db?"), "{answer}");
            let (is_known, answer) = told(b"*1\r\n$4\r\nPING\r\n", database).await;
            assert!(is_known && answer == "-ERR adit: no Service dbx in shop (hint: did you mean db?)\r\n", "{answer}");
            let (is_known, answer) = told(b"GET / HTTP/1.1\r\n", database).await;
            assert!(!is_known && answer.is_empty(), "{answer}");
        }
        let (is_known, answer) = told(b"", Some(Database::MySql)).await;
        assert!(is_known && answer.contains("adit: no Service dbx in shop"), "{answer}");
        assert_eq!(told(b"", None).await, (false, String::new()));
    }
}
