//! Records whether an API server answers requests.

use std::{
    sync::{Arc, Mutex},
    time::SystemTime,
};

/// Shared by all clients of one API server.
#[derive(Clone, Default)]
pub struct Contact(Arc<Mutex<Option<SystemTime>>>);

impl Contact {
    /// Records the result of a request. Any answer counts, even an error of the server.
    pub fn note(&self, has_answered: bool) {
        let mut since = self.0.lock().expect("no panic while the lock is held");
        *since = match has_answered {
            true => None,
            false => since.or_else(|| Some(SystemTime::now())),
        };
    }

    /// Returns the time of the first failed request since the last answer. `None`: the server answers, or there was no
    /// request.
    pub fn lost_since(&self) -> Option<SystemTime> {
        *self.0.lock().expect("no panic while the lock is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_counts_until_the_next_answer() {
        let contact = Contact::default();
        assert_eq!(contact.lost_since(), None);
        contact.note(false);
        let since = contact.lost_since();
        assert!(since.is_some());
        contact.clone().note(false);
        assert_eq!(contact.lost_since(), since);
        contact.note(true);
        assert_eq!(contact.lost_since(), None);
    }
}
