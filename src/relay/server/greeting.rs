//! First message of a client's connection: a login, or a claim of a visitor's stream.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tracing::info;

use super::{
    Server,
    idle::{Connection, Lent},
    tunnels::Wanted,
    visitors::StreamName,
};
use crate::{
    io::{accept::Place, read_ahead::ReadAhead},
    random,
    relay::{
        auth::{self, Role, Transcript},
        conversation::{self, HEARTBEAT, Over},
        tls,
    },
    wire::relay::{Frame, Kind},
};

/// Maximum length of an unauthenticated key name in the log, in characters.
const LONGEST_SHOWN: usize = 64;

impl Server {
    pub(super) async fn greet(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, place: Place) -> Result<(), Over> {
        let mut first = [0];
        let limit = place.limits().first_byte;
        let silent = |_| Over::Silent(limit);
        let count = tokio::select! {
            peeked = timeout(limit, stream.peek(&mut first)) => peeked.map_err(silent)??,
            // A connection that has sent nothing has nothing in progress.
            () = self.drain.started() => return Ok(()),
        };
        match (count, first[0]) {
            (0, _) => Err(Over::Closed),
            // 0x16: a TLS handshake record.
            (_, 0x16) => {
                let accepting = TlsAcceptor::from(self.tls.load_full()).accept(ReadAhead::new(stream));
                let tls = timeout(limit, accepting).await.map_err(silent)??;
                self.greet_v2(tls, peer, place).await
            }
            _ => self.greet_v1(stream, peer, place).await,
        }
    }

    async fn greet_v2(self: Arc<Self>, mut tls: Connection, peer: SocketAddr, place: Place) -> Result<(), Over> {
        let exporter = tls::exporter(tls.get_ref().1)?;
        match conversation::step(&mut tls).await? {
            Frame::Hello { version: 2, nonce, port, key } => {
                let known = self.keys.load().iter().find(|known| known.name == key).cloned();
                let transcript = Transcript { key, port, client: nonce, server: random::bytes()?, exporter };
                // The relay must not send anything that depends on the secret before the client has proven it. Otherwise
                // anyone who knows the name of a key gets an HMAC for an offline attack on the secret.
                conversation::send(&mut tls, &[Frame::Challenge { nonce: transcript.server }]).await?;
                let Frame::Proof { proof } = conversation::step(&mut tls).await? else {
                    return Err(Over::Unexpected("another frame"));
                };
                // For an unknown key, checks against a random secret, so that the answer does not tell whether the key
                // exists.
                let secret = known.as_ref().map_or(auth::new_secret()?, |key| key.secret.clone());
                let is_proven = transcript.is_proven(&secret, Role::Client, &proof);
                let Some(key) = known.filter(|_| is_proven) else {
                    // The name is not authenticated.
                    let key: String = transcript.key.chars().take(LONGEST_SHOWN).collect();
                    self.refusals.add(peer, &key, "the secret is not the one of this relay");
                    info!(%peer, key, "relay: rejected: wrong secret");
                    return self.reject(&mut tls, "the secret is not the one of this relay").await;
                };
                let (session, frames) = self.new_session(key, peer, false)?;
                let heartbeat = HEARTBEAT.as_secs() as u16;
                let proof = transcript.proof(&secret, Role::Server);
                conversation::send(&mut tls, &[Frame::Welcome { session: session.token, heartbeat, proof }]).await?;
                drop(place);
                self.converse(tls, session, frames).await
            }
            Frame::Hello { version, .. } => {
                self.reject(&mut tls, &format!("version {version} is not served here: 2 is")).await
            }
            Frame::Claim { session, stream, proof } => {
                let session = self.state().sessions.get(&session).cloned().filter(|known| {
                    !known.is_v1 && auth::is_claimed(&known.key.secret, &session, &stream, &exporter, &proof)
                });
                if let Some(session) = session.as_ref().filter(|session| session.is_prepared(&stream)) {
                    conversation::send(&mut tls, &[Frame::StreamAccept]).await?;
                    drop(place);
                    session.idle.put(tls);
                    return Ok(());
                }
                let token = session.as_ref().map(|session| session.token);
                let pending = self.join(&mut tls, StreamName::V2(stream), token).await?;
                drop(place);
                if let (Some(pending), Some(session)) = (pending, session) {
                    // The visitor may be gone. Then the client sees the end of its stream.
                    let _ = pending.to.send(Ok(Box::new(Lent::new(tls, session))));
                }
                Ok(())
            }
            other => Err(Over::Unexpected(conversation::name(&other))),
        }
    }

    async fn greet_v1(self: Arc<Self>, mut stream: TcpStream, peer: SocketAddr, place: Place) -> Result<(), Over> {
        // Fails only on a socket that is already closed.
        let _ = stream.set_nodelay(true);
        if !self.options.allow_v1 {
            return self.reject(&mut stream, "this relay serves version 2 alone, within TLS").await;
        }
        match conversation::step(&mut stream).await? {
            Frame::Handshake { version: 1, secret } => {
                let key = self.keys.load().iter().find(|key| auth::is_same(key.secret.as_bytes(), &secret)).cloned();
                let Some(key) = key else {
                    self.refusals.add(peer, "a client of version 1", "the secret is not the one of this relay");
                    info!(%peer, "relay: rejected: wrong secret");
                    return self.reject(&mut stream, "the secret is not the one of this relay").await;
                };
                let host = stream.local_addr()?.ip().to_string();
                let (session, frames) = self.new_session(key, peer, true)?;
                drop(place);
                let wanted = Wanted { id: 0, kind: Kind::Tcp, port: 0, name: String::new(), resume: [0; 16] };
                match self.open(&session, &wanted).await {
                    Ok(tunnel) => {
                        conversation::send(&mut stream, &[Frame::Accept { port: tunnel.port, host }]).await?;
                        self.converse(stream, session, frames).await
                    }
                    Err(error) => {
                        self.forget(&session, true);
                        self.reject(&mut stream, &error.to_string()).await
                    }
                }
            }
            Frame::Handshake { version, .. } => {
                self.reject(&mut stream, &format!("version {version} is not served here: 1 and 2 are")).await
            }
            Frame::StreamHandshake { stream: uuid } => {
                let name = StreamName::V1(uuid);
                let session = self.state().pending.get(&name).map(|pending| pending.session);
                let pending = self.join(&mut stream, name, session).await?;
                drop(place);
                if let Some(pending) = pending {
                    let _ = pending.to.send(Ok(Box::new(stream)));
                }
                Ok(())
            }
            other => Err(Over::Unexpected(conversation::name(&other))),
        }
    }

    async fn reject<S>(&self, connection: &mut S, reason: &str) -> Result<(), Over>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.counters.rejected.fetch_add(1, Ordering::Relaxed);
        conversation::send(connection, &[Frame::Reject { reason: reason.to_owned() }]).await?;
        // Reads the rest, because unread bytes would turn our close into a reset.
        let _ =
            timeout(Duration::from_secs(1), async { while conversation::receive(connection).await.is_ok() {} }).await;
        Ok(())
    }
}
