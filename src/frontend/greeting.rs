//! Reads the bytes before a client's TLS, and its ClientHello.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use crate::{
    io::BoxedIo,
    wire::{
        client_hello::{self, ClientHello, HelloError, Parse},
        postgres::{self, First},
    },
};

/// Timeout for a PostgreSQL server's answer to an SSLRequest, and for a refused client to read its refusal.
pub const ANSWER: Duration = Duration::from_secs(10);

/// Maximum number of SSLRequests and GSSENCRequests before the ClientHello: more than any client sends.
const MOST_REQUESTS: usize = 4;

/// Descriptions of TLS alerts (RFC 8446, section 6).
pub const HANDSHAKE_FAILURE: u8 = 40;
pub const DECODE_ERROR: u8 = 50;
pub const INTERNAL_ERROR: u8 = 80;
pub const UNRECOGNIZED_NAME: u8 = 112;

/// Start of a client's connection, with the server name to route by.
pub struct Greeting {
    pub hello: ClientHello,
    /// The ClientHello as received, and the bytes behind it.
    pub bytes: Bytes,
    /// The client sent an SSLRequest of PostgreSQL, and adit answered `S`.
    pub is_postgres: bool,
}

/// Why a connection has no ClientHello.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// A start-up message of PostgreSQL without TLS: it has no server name.
    #[error("a PostgreSQL client that does not use TLS")]
    PlainPostgres,
    /// A whole CancelRequest of PostgreSQL, without TLS.
    #[error("a PostgreSQL client that cancels a query")]
    Cancel(Bytes),
    #[error("the client ended its connection within its ClientHello")]
    Ended,
    #[error("the client did not finish its ClientHello within {0:?}")]
    TimedOut(Duration),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads up to the end of the ClientHello, however it is split.
///
/// `received`: bytes that were read before. `limit`: timeout for the whole ClientHello.
///
/// # Errors
/// The first bytes are no TLS, are too many, or do not arrive in time.
pub async fn read(stream: &mut BoxedIo, received: BytesMut, limit: Duration) -> Result<Greeting, GreetingError> {
    timeout(limit, read_on(stream, received)).await.map_err(|_| GreetingError::TimedOut(limit))?
}

async fn read_on(stream: &mut BoxedIo, mut received: BytesMut) -> Result<Greeting, GreetingError> {
    let mut is_postgres = false;
    let mut requests = 0;
    while requests < MOST_REQUESTS {
        requests += 1;
        match postgres::first(&received) {
            First::SslRequest if !is_postgres => {
                drop(received.split_to(postgres::SSL_REQUEST.len()));
                // A client that waits for the answer sends nothing behind the SSLRequest (CVE-2021-23214).
                if !received.is_empty() {
                    return Err(HelloError::NotTls.into());
                }
                stream.write_all(b"S").await?;
                stream.flush().await?;
                is_postgres = true;
            }
            First::GssEncRequest if !is_postgres => {
                drop(received.split_to(postgres::GSSENC_REQUEST.len()));
                stream.write_all(b"N").await?;
                stream.flush().await?;
            }
            First::Startup if !is_postgres => return Err(GreetingError::PlainPostgres),
            First::Cancel if !is_postgres => loop {
                if let Some(message) = postgres::whole(&received) {
                    return Err(GreetingError::Cancel(Bytes::copy_from_slice(message)));
                }
                read_some(stream, &mut received).await?;
            },
            First::NeedMore if !is_postgres => {
                // An incomplete request does not count.
                requests -= 1;
                read_some(stream, &mut received).await?;
            }
            _ => break,
        }
    }
    let mut worth_a_look = 0;
    loop {
        // The record headers give the missing length: parse again only then, not at each byte of a slow client.
        if received.len() >= worth_a_look
            && let Parse::Hello(hello) = client_hello::parse(&received)?
        {
            return Ok(Greeting { hello, bytes: received.freeze(), is_postgres });
        }
        worth_a_look = received.len().max(client_hello::missing_to(&received));
        read_some(stream, &mut received).await?;
    }
}

async fn read_some(stream: &mut BoxedIo, received: &mut BytesMut) -> Result<(), GreetingError> {
    received.reserve(2 * 1024);
    match stream.read_buf(received).await? {
        0 => Err(GreetingError::Ended),
        _ => Ok(()),
    }
}

/// Ends a connection with a fatal alert, which a TLS client understands before the handshake.
pub async fn alert(stream: &mut BoxedIo, description: u8) {
    end_with(stream, &[0x15, 3, 3, 0, 2, 2, description]).await;
}

/// Sends the last bytes, and reads until the client closes. To close with unread bytes would send an RST, which drops them.
pub async fn end_with<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, last: &[u8]) {
    // The client may be gone already.
    let _ = timeout(ANSWER, async {
        stream.write_all(last).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, io::Error>(())
    })
    .await;
}

/// Asks a PostgreSQL server for TLS; returns whether it agrees.
///
/// # Errors
/// The server answers with another byte, or not within `limit`.
pub async fn ask_for_tls(backend: &mut BoxedIo, limit: Duration) -> io::Result<bool> {
    let asking = async {
        backend.write_all(&postgres::SSL_REQUEST).await?;
        backend.flush().await?;
        let mut answer = [0];
        backend.read_exact(&mut answer).await?;
        match answer[0] {
            b'S' => Ok(true),
            b'N' => Ok(false),
            other => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the server answered {:?} to a request for TLS: is it PostgreSQL?", char::from(other)),
            )),
        }
    };
    timeout(limit, asking).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn requests_for_encryption_may_come_byte_by_byte() {
        let (mut client, server) = duplex(1);
        let mut server: BoxedIo = Box::new(server);
        let asking = async {
            let mut answers = [0; 2];
            client.write_all(&postgres::GSSENC_REQUEST).await.unwrap();
            client.read_exact(&mut answers[..1]).await.unwrap();
            client.write_all(&postgres::SSL_REQUEST).await.unwrap();
            client.read_exact(&mut answers[1..]).await.unwrap();
            drop(client);
            answers
        };
        let (answers, read) = tokio::join!(asking, read(&mut server, BytesMut::new(), Duration::from_secs(10)));
        assert_eq!(&answers, b"NS");
        assert!(matches!(read, Err(GreetingError::Ended)));
    }
}
