//! Pods by PostgreSQL session: a CancelRequest arrives on its own connection, and names only the key that the server gave the
//! session.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    io::{
        BoxedIo, Io,
        through::{flush_through, said_through},
    },
    routing::{Route, Target},
    wire::postgres::{First, Key, KeyWatch, first},
};

/// Open sessions.
#[derive(Default)]
pub struct Sessions(Mutex<State>);

#[derive(Default)]
struct State {
    last: u64,
    open: BTreeMap<u64, Session>,
}

/// Target and pod of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub target: Target,
    pub idle_timeout: Duration,
    pub pod: Arc<str>,
}

struct Session {
    /// Address of the client.
    peer: IpAddr,
    place: Place,
    key: Key,
}

impl Sessions {
    /// Registers a session until the returned guard is dropped. `key`: [`Key::Hidden`] if the server sends it encrypted.
    fn begin(self: &Arc<Self>, peer: SocketAddr, place: Place, key: Key) -> OpenSession {
        let mut state = self.lock();
        state.last += 1;
        let number = state.last;
        state.open.insert(number, Session { peer: peer.ip().to_canonical(), place, key });
        OpenSession { sessions: self.clone(), number }
    }

    /// Returns the place of the session with this key. If no session is known to have it, returns the places of all sessions of
    /// the same client whose keys are encrypted: one of them may have it. `only`: target that the sessions must have.
    pub fn find(&self, key: &[u8], peer: SocketAddr, only: Option<&Target>) -> Vec<Place> {
        let (state, peer) = (self.lock(), peer.ip().to_canonical());
        let candidates =
            || state.open.values().filter(|session| only.is_none_or(|target| session.place.target == *target));
        let mut places: Vec<Place> = candidates()
            .filter(|session| matches!(&session.key, Key::Found(found) if found == key))
            .map(|session| session.place.clone())
            .collect();
        if places.is_empty() {
            let hidden = candidates().filter(|session| session.key == Key::Hidden && session.peer == peer);
            for session in hidden {
                if !places.contains(&session.place) {
                    places.push(session.place.clone());
                }
            }
        }
        places
    }

    /// Returns the pod of a client's latest session with an encrypted key. New connections of the client go to that pod, because
    /// an encrypted CancelRequest looks like any new session.
    pub fn pod_of(&self, peer: SocketAddr, target: &Target) -> Option<Arc<str>> {
        let (state, peer) = (self.lock(), peer.ip().to_canonical());
        let is_it =
            |session: &&Session| session.peer == peer && session.place.target == *target && session.key == Key::Hidden;
        state.open.values().rev().find(is_it).map(|session| session.place.pod.clone())
    }

    /// Returns whether sessions of a target are open.
    pub fn has(&self, target: &Target) -> bool {
        self.lock().open.values().any(|session| session.place.target == *target)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while the lock is held")
    }
}

/// Guard of an open session; its drop removes the session.
pub struct OpenSession {
    sessions: Arc<Sessions>,
    number: u64,
}

impl OpenSession {
    fn set_key(&self, key: Key) {
        if let Some(session) = self.sessions.lock().open.get_mut(&self.number) {
            session.key = key;
        }
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.sessions.lock().open.remove(&self.number);
    }
}

/// Stream to a server that detects whether the client speaks PostgreSQL, and reads the key of its session.
pub struct Watched {
    inner: BoxedIo,
    client: Client,
    /// First bytes of the client, at most 8.
    first: Vec<u8>,
    watch: KeyWatch,
    session: Option<OpenSession>,
}

/// Client and place of the session, if it becomes one.
struct Client {
    sessions: Arc<Sessions>,
    peer: SocketAddr,
    place: Place,
    /// Nothing more can be learned: the protocol is another one, or the key is known or encrypted.
    is_known: bool,
}

impl Watched {
    /// Must be made before the client's first byte is passed on.
    pub fn new(inner: BoxedIo, sessions: Arc<Sessions>, peer: SocketAddr, route: &Route, pod: &str) -> Self {
        let place = Place { target: route.target.clone(), idle_timeout: route.idle_timeout, pod: pod.into() };
        let client = Client { sessions, peer, place, is_known: false };
        Self { inner, client, first: Vec::new(), watch: KeyWatch::default(), session: None }
    }

    /// Begins a session of a client that is known to speak PostgreSQL. `is_encrypted`: adit cannot read what follows.
    pub fn of_postgres(mut self, is_encrypted: bool) -> Self {
        let key = if is_encrypted { Key::Hidden } else { Key::NotYet };
        self.client.is_known = is_encrypted;
        self.session = Some(self.client.sessions.begin(self.client.peer, self.client.place.clone(), key));
        self
    }

    /// Returns the client's first bytes, at most 8.
    pub fn first(&self) -> &[u8] {
        &self.first
    }

    fn note_sent(&mut self, bytes: &[u8]) {
        const LONGEST: usize = 8;
        if self.session.is_some() || self.client.is_known {
            return;
        }
        let room = LONGEST - self.first.len();
        self.first.extend_from_slice(&bytes[..bytes.len().min(room)]);
        match first(&self.first) {
            First::NeedMore => {}
            First::SslRequest | First::GssEncRequest | First::Startup => {
                let Client { sessions, peer, place, .. } = &self.client;
                self.session = Some(sessions.begin(*peer, place.clone(), Key::NotYet));
            }
            First::Cancel | First::Other => self.client.is_known = true,
        }
    }

    fn note_received(&mut self, bytes: &[u8]) {
        if self.client.is_known {
            return;
        }
        match &self.session {
            Some(session) => match self.watch.take(bytes) {
                Key::NotYet => {}
                key => {
                    session.set_key(key.clone());
                    self.client.is_known = true;
                }
            },
            // A server that speaks first is not PostgreSQL.
            None => self.client.is_known |= !bytes.is_empty(),
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if polled.is_ready() {
            self.note_received(&buf.filled()[before..]);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = &polled {
            self.note_sent(&buf[..*count]);
        }
        polled
    }

    flush_through!();
}

impl Io for Watched {
    said_through!();
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::wire::postgres::SSL_REQUEST;

    const STARTUP: &[u8] = b"\0\0\0\x13\0\x03\0\0user\0demo\0\0";

    fn route(name: &str) -> Route {
        Route {
            name: name.into(),
            target: Target::Named(name.into()),
            idle_timeout: Duration::ZERO,
            options: Arc::default(),
        }
    }

    fn peer(ip: &str) -> SocketAddr {
        format!("{ip}:5000").parse().unwrap()
    }

    /// Opens a session in which the client sends `asked` and the server `said`.
    async fn session(sessions: &Arc<Sessions>, ip: &str, pod: &str, asked: &[u8], said: &[u8]) -> Watched {
        let (near, mut far) = duplex(1 << 16);
        let mut watched = Watched::new(Box::new(near), sessions.clone(), peer(ip), &route("db"), pod);
        watched.write_all(asked).await.unwrap();
        far.write_all(said).await.unwrap();
        drop(far);
        watched.read_to_end(&mut Vec::new()).await.unwrap();
        watched
    }

    fn pods(found: Vec<Place>) -> Vec<String> {
        found.iter().map(|place| place.pod.to_string()).collect()
    }

    #[tokio::test]
    async fn a_key_leads_to_the_pod_that_gave_it() {
        let sessions = Arc::<Sessions>::default();
        let said = |key: u8| [&b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x01\0\0\0"[..], &[key]].concat();
        let key = |key: u8| [0, 0, 0, 1, 0, 0, 0, key];
        let one = session(&sessions, "127.0.0.1", "db-0", STARTUP, &said(1)).await;
        let _two = session(&sessions, "127.0.0.1", "db-1", STARTUP, &said(2)).await;
        let _hidden = session(&sessions, "127.0.0.1", "db-2", &SSL_REQUEST, b"S\x16\x03\x03").await;
        let _not_ours = session(&sessions, "10.0.0.1", "db-3", &SSL_REQUEST, b"S").await;
        let _other = session(&sessions, "127.0.0.1", "web-0", b"GET / HTTP/1.1\r\n", &said(3)).await;
        let find = |wanted: u8, only: Option<&str>| {
            let only = only.map(|name| Target::Named(name.into()));
            pods(sessions.find(&key(wanted), peer("127.0.0.1"), only.as_ref()))
        };
        assert_eq!(find(1, None), ["db-0"]);
        assert_eq!(find(2, Some("db")), ["db-1"]);
        assert_eq!(find(2, Some("other")), [""; 0]);
        // The key may belong to an encrypted session of this client, but not to one of another machine.
        assert_eq!(find(7, None), ["db-2"]);
        assert_eq!(sessions.pod_of(peer("127.0.0.1"), &Target::Named("db".into())).as_deref(), Some("db-2"));
        assert_eq!(sessions.pod_of(peer("10.0.0.2"), &Target::Named("db".into())), None);
        drop(one);
        assert_eq!(find(1, None), ["db-2"], "the session is over");
        assert!(sessions.has(&Target::Named("db".into())) && !sessions.has(&Target::Named("web".into())));
    }
}
