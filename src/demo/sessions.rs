//! The sessions of the demo's PostgreSQL, so that they can be cancelled.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::sync::Notify;

/// The sessions of a server, by process id and secret key.
#[derive(Debug, Default)]
pub struct Sessions {
    last: AtomicU32,
    open: Mutex<HashMap<[u8; 8], Arc<Notify>>>,
}

impl Sessions {
    pub fn begin(&self, pod: &str) -> ([u8; 8], Arc<Notify>) {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut key = [0; 8];
        key[..4].copy_from_slice(&number.to_be_bytes());
        // Pods have different secrets for the same process id.
        let secret = pod.bytes().fold(number, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        key[4..].copy_from_slice(&secret.to_be_bytes());
        let cancelled = Arc::<Notify>::default();
        self.open.lock().expect("no panic while the lock is held").insert(key, cancelled.clone());
        (key, cancelled)
    }

    pub fn end(&self, key: &[u8; 8]) {
        self.open.lock().expect("no panic while the lock is held").remove(key);
    }

    pub fn cancel(&self, key: &[u8]) {
        let open = self.open.lock().expect("no panic while the lock is held");
        if let Some(session) = key.try_into().ok().and_then(|key: [u8; 8]| open.get(&key)) {
            session.notify_waiters();
        }
    }
}
