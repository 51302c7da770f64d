//! Public ports and names that are reserved for a lost client.
//!
//! A reservation belongs to the key, because a killed client has lost everything else. The resume token, which the client
//! got with the tunnel, only says which of several ports was its own.

use std::{collections::HashMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    net::TcpListener,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::wire::relay::Token;

/// How long a port or a name stays reserved. A laptop may sleep longer, but then others need the port.
pub const RESERVED_FOR: Duration = Duration::from_secs(10 * 60);

/// How long visitors of a lost client wait for its return.
pub const AWAITED_FOR: Duration = Duration::from_secs(30);

/// Public name or port of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Public {
    Port(u16),
    Name(String),
}

/// Error: the port or name is reserved for a client of another key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is reserved until {} UTC for a client of another key, which was disconnected", shown(.public), .until.strftime("%H:%M:%S"))]
pub struct Reserved {
    pub public: Public,
    pub until: Timestamp,
}

fn shown(public: &Public) -> String {
    match public {
        Public::Port(port) => format!("port {port}"),
        Public::Name(name) => format!("the name \"{name}\""),
    }
}

struct Reservation {
    key: String,
    resume: Token,
    since: Instant,
    /// For messages.
    until: Timestamp,
    /// Listener of a public port, as long as its visitors wait.
    listener: Option<Arc<TcpListener>>,
    /// Cancelled when the reservation ends.
    over: CancellationToken,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

/// Visitors wait for the return of a lost client.
pub struct Awaited {
    pub until: Instant,
    /// Cancelled when the client is back, or when the port or name is free.
    pub over: CancellationToken,
}

/// All reservations of a relay.
#[derive(Default)]
pub struct Reservations {
    kept: HashMap<Public, Reservation>,
}

impl Reservations {
    /// Reserves a port or a name for a key. `listener`: the listener of a public port, for its visitors.
    pub fn keep(&mut self, public: Public, key: &str, resume: Token, listener: Option<Arc<TcpListener>>) {
        let until = Timestamp::now()
            .checked_add(SignedDuration::from_secs(RESERVED_FOR.as_secs().cast_signed()))
            .unwrap_or(Timestamp::MAX);
        let (since, over) = (Instant::now(), CancellationToken::new());
        let reservation = Reservation { key: key.to_owned(), resume, since, until, listener, over };
        self.kept.insert(public, reservation);
    }

    /// Ends the oldest reservations of a key until at most `most` are left.
    pub fn limit(&mut self, key: &str, most: usize) {
        self.forget_old();
        let of_key = self.kept.iter().filter(|(_, kept)| kept.key == key);
        let mut of_key: Vec<(Instant, Public)> = of_key.map(|(public, kept)| (kept.since, public.clone())).collect();
        of_key.sort_by_key(|(since, _)| *since);
        for (_, public) in of_key.iter().take(of_key.len().saturating_sub(most)) {
            self.kept.remove(public);
        }
    }

    /// Ends the reservation of a tunnel, unless another one has replaced it.
    pub fn release(&mut self, public: &Public, resume: &Token) {
        if self.kept.get(public).is_some_and(|kept| kept.resume == *resume) {
            self.kept.remove(public);
        }
    }

    /// Returns the port that has been reserved for a key for the longest time, of those that `is_one` selects.
    pub fn oldest_port(&self, key: &str, is_one: impl Fn(u16) -> bool) -> Option<u16> {
        let ports = self.kept.iter().filter(|(_, kept)| kept.key == key).filter_map(|(public, kept)| match public {
            Public::Port(port) if is_one(*port) => Some((kept.since, *port)),
            _ => None,
        });
        ports.min().map(|(_, port)| port)
    }

    /// Ends a reservation, because its client is back, or another client of the same key.
    pub fn end(&mut self, public: &Public) {
        self.kept.remove(public);
    }

    /// Checks whether a key may use a port or a name.
    ///
    /// # Errors
    /// Fails if it is reserved for a client of another key.
    pub fn check(&mut self, public: &Public, key: &str) -> Result<(), Reserved> {
        self.forget_old();
        match self.kept.get(public).filter(|kept| kept.key != key) {
            Some(kept) => Err(Reserved { public: public.clone(), until: kept.until }),
            None => Ok(()),
        }
    }

    /// Returns until when the visitors of a port or a name wait. `None`: they do not wait.
    pub fn awaited(&self, public: &Public) -> Option<Awaited> {
        let kept = self.kept.get(public).filter(|kept| kept.since.elapsed() < AWAITED_FOR)?;
        Some(Awaited { until: kept.since + AWAITED_FOR, over: kept.over.clone() })
    }

    /// Returns the names whose visitors wait for a client.
    pub fn awaited_names(&self) -> impl Iterator<Item = &str> {
        self.kept.keys().filter_map(|public| match public {
            Public::Name(name) if self.awaited(public).is_some() => Some(name.as_str()),
            _ => None,
        })
    }

    /// Takes the listener of a reserved port.
    pub fn listener(&mut self, port: u16) -> Option<Arc<TcpListener>> {
        self.kept.get_mut(&Public::Port(port))?.listener.take()
    }

    /// Returns whether the port or name is reserved for any client.
    pub fn is_kept(&self, public: &Public) -> bool {
        self.kept.get(public).is_some_and(|kept| kept.since.elapsed() < RESERVED_FOR)
    }

    /// Returns the port that is reserved for the client with this resume token.
    pub fn port_of(&mut self, key: &str, resume: &Token) -> Option<u16> {
        self.forget_old();
        let mut ports = self.kept.iter().filter(|(_, kept)| kept.key == key && kept.resume == *resume);
        ports.find_map(|(public, _)| match public {
            Public::Port(port) => Some(*port),
            Public::Name(_) => None,
        })
    }

    fn forget_old(&mut self) {
        self.kept.retain(|_, kept| kept.since.elapsed() < RESERVED_FOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Public {
        Public::Name(name.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_reservation_is_the_keys_and_ends() {
        let mut book = Reservations::default();
        book.keep(name("web"), "ana", [1; 16], None);
        book.keep(Public::Port(20_000), "ana", [2; 16], None);
        assert_eq!(book.check(&name("web"), "ana"), Ok(()));
        let refused = book.check(&name("web"), "bo").unwrap_err().to_string();
        assert!(
            refused.starts_with("the name \"web\" is reserved until ")
                && refused.contains(" UTC for a client of another key"),
            "{refused}"
        );
        assert!(book.check(&Public::Port(20_000), "bo").unwrap_err().to_string().starts_with("port 20000 is reserved"));
        assert_eq!(book.check(&name("other"), "bo"), Ok(()));
        assert_eq!((book.port_of("ana", &[2; 16]), book.port_of("bo", &[2; 16])), (Some(20_000), None));
        assert_eq!(book.port_of("ana", &[1; 16]), None, "a name is no port");
        // Visitors wait for a shorter time.
        let awaited = book.awaited(&name("web")).unwrap();
        tokio::time::advance(AWAITED_FOR).await;
        assert!(book.awaited(&name("web")).is_none() && book.awaited_names().next().is_none());
        assert!(book.check(&name("web"), "bo").is_err() && !awaited.over.is_cancelled());
        tokio::time::advance(RESERVED_FOR).await;
        assert_eq!(book.check(&name("web"), "bo"), Ok(()));
        assert!(awaited.over.is_cancelled());
        assert!(!book.is_kept(&Public::Port(20_000)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_has_a_bounded_number_of_them() {
        let mut book = Reservations::default();
        book.keep(Public::Port(1), "bo", [0; 16], None);
        for port in 10..20 {
            tokio::time::advance(Duration::from_millis(1)).await;
            book.keep(Public::Port(port), "ana", [0; 16], None);
            book.limit("ana", 2);
        }
        let kept: Vec<u16> = (0..30).filter(|port| book.is_kept(&Public::Port(*port))).collect();
        assert_eq!(kept, [1, 18, 19], "its latest, and those of others");
        book.limit("ana", 1);
        assert!(!book.is_kept(&Public::Port(18)) && book.is_kept(&Public::Port(19)));
        book.end(&Public::Port(19));
        assert!(!book.is_kept(&Public::Port(19)));
    }
}
