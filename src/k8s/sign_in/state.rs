//! State machine of one sign-in. Pure.
//!
//! ```text
//!          needed              issued           expired, refused, or another offered
//!   Idle ----------> Running ----------> Signed -------------------------> Idle
//!    ^                  |                   |
//!    |                  | failed            | refused again
//!    |  retry_at        v                   |
//!    +--------------- Failed <--------------+
//! ```
//!
//! In Failed, callers get the stored error. Each consecutive failure doubles the pause, until a server accepts a
//! credential.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use http::HeaderValue;
use tokio::time::Instant;

use super::Failure;
use crate::k8s::credential::Credential;

/// Pause after the first failure, and longest pause: a person fixes the cause by hand, and reloads a page.
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(60);

/// Phase of a sign-in.
#[derive(Clone, Debug)]
pub enum Phase {
    /// There is no credential, and no request for one.
    Idle,
    /// The issuer runs since this time.
    Running {
        since: Instant,
    },
    Signed(Arc<Credential>),
    /// The issuer must not run before `retry_at`.
    Failed {
        failure: Failure,
        retry_at: Instant,
    },
    /// adit is shutting down.
    Stopped,
}

/// Next step of a caller that needs a credential.
#[derive(Debug)]
pub enum Next {
    Use(Arc<Credential>),
    /// Fail with this error.
    Fail(Failure),
    /// Wait for another caller's sign-in.
    Wait,
    /// Start the sign-in.
    Start,
}

/// Phase of a sign-in, and its history.
#[derive(Clone, Debug)]
pub struct State {
    pub phase: Phase,
    /// Number of consecutive failures.
    failures: u32,
    /// End of the last sign-in, successful or not.
    pub ended: Option<Instant>,
    /// Hashes of the issued headers: an offered one of these is no new sign-in.
    issued: BTreeSet<u64>,
}

impl Default for State {
    fn default() -> Self {
        Self { phase: Phase::Idle, failures: 0, ended: None, issued: BTreeSet::new() }
    }
}

impl State {
    /// Handles a caller that needs a credential.
    pub fn needed(&mut self, now: Instant) -> Next {
        match &self.phase {
            Phase::Signed(credential) if credential.is_fresh() => return Next::Use(credential.clone()),
            Phase::Failed { failure, retry_at } if now < *retry_at => return Next::Fail(failure.clone()),
            Phase::Running { .. } => return Next::Wait,
            Phase::Stopped => return Next::Fail(Failure::new("adit ends, and the sign-in with it".to_owned())),
            Phase::Idle | Phase::Signed(_) | Phase::Failed { .. } => {}
        }
        self.phase = Phase::Running { since: now };
        Next::Start
    }

    /// Handles the end of the sign-in.
    pub fn ended(&mut self, issued: Result<Credential, Failure>, now: Instant) {
        self.ended = Some(now);
        match (&self.phase, issued) {
            (Phase::Stopped, _) => {}
            (_, Ok(credential)) => {
                self.issued.extend(credential.header.as_ref().map(hash));
                self.phase = Phase::Signed(Arc::new(credential));
            }
            (_, Err(failure)) => self.fail(failure, now),
        }
    }

    /// Handles a credential in the kubeconfig. If it is new, the next caller signs in with it.
    pub fn offered(&mut self, header: &HeaderValue) {
        if matches!(self.phase, Phase::Signed(_) | Phase::Failed { .. }) && !self.issued.contains(&hash(header)) {
            self.phase = Phase::Idle;
        }
    }

    /// Handles an accepted credential.
    pub fn accepted(&mut self) {
        self.failures = 0;
    }

    /// Handles a refused credential. If no server has ever accepted one, the second refusal counts as a failure.
    pub fn refused(&mut self, credential: &Arc<Credential>, now: Instant) {
        let Phase::Signed(present) = &self.phase else { return };
        // Another caller has already renewed it.
        if !Arc::ptr_eq(present, credential) {
            return;
        }
        match (credential.is_accepted(), self.failures) {
            (true, _) => self.phase = Phase::Idle,
            (false, 0) => (self.phase, self.failures) = (Phase::Idle, 1),
            (false, _) => self.fail(Failure::refused(), now),
        }
    }

    pub fn stop(&mut self) {
        self.phase = Phase::Stopped;
    }

    fn fail(&mut self, failure: Failure, now: Instant) {
        let pause = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Failed { failure, retry_at: now + pause };
    }
}

fn hash(header: &HeaderValue) -> u64 {
    let mut hasher = DefaultHasher::new();
    header.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(state: &mut State, now: Instant) -> bool {
        matches!(state.needed(now), Next::Start)
    }

    fn credential() -> Result<Credential, Failure> {
        Ok(Credential::default())
    }

    fn used(state: &mut State, now: Instant) -> Arc<Credential> {
        match state.needed(now) {
            Next::Use(credential) => credential,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_runs_at_a_time_and_its_credential_is_used_until_it_is_refused() {
        let (mut state, now) = (State::default(), Instant::now());
        assert!(starts(&mut state, now));
        assert!(matches!(state.needed(now), Next::Wait));
        state.ended(credential(), now);
        let first = used(&mut state, now);
        first.accept();
        state.accepted();
        state.refused(&first, now);
        assert!(starts(&mut state, now), "what was accepted once may be renewed at once");
        state.refused(&first, now);
        assert!(matches!(state.needed(now), Next::Wait), "that one is renewed already");
        state.ended(credential(), now);
        state.refused(&first, now);
        assert!(!Arc::ptr_eq(&used(&mut state, now), &first), "an old one says nothing about the next");
    }

    #[test]
    fn pauses_double_to_a_minute_and_the_stored_error_answers_meanwhile() {
        let (mut state, mut now) = (State::default(), Instant::now());
        for seconds in [2, 4, 8, 16, 32, 60, 60] {
            assert!(starts(&mut state, now));
            state.ended(Err(Failure::new("no".into())), now);
            let before = now + Duration::from_secs(seconds) - Duration::from_millis(1);
            assert!(matches!(state.needed(before), Next::Fail(failure) if failure.reason == "no"), "{seconds}");
            now += Duration::from_secs(seconds);
        }
        assert!(starts(&mut state, now));
        state.ended(credential(), now);
        state.accepted();
        let credential = used(&mut state, now);
        state.refused(&credential, now);
        assert!(starts(&mut state, now));
        state.ended(Err(Failure::new("no".into())), now);
        assert!(starts(&mut state, now + Duration::from_secs(4)), "after a success they begin anew");
    }

    #[test]
    fn a_credential_that_no_server_takes_is_renewed_once_and_then_with_pauses() {
        let (mut state, now) = (State::default(), Instant::now());
        let refuse = |state: &mut State, now| {
            assert!(starts(state, now));
            state.ended(credential(), now);
            let credential = used(state, now);
            state.refused(&credential, now);
        };
        refuse(&mut state, now);
        refuse(&mut state, now);
        assert!(matches!(state.needed(now), Next::Fail(failure) if failure.reason.contains("401")));
        let later = now + Duration::from_secs(4);
        refuse(&mut state, later);
        assert!(matches!(state.needed(later + Duration::from_secs(7)), Next::Fail(_)));
        assert!(starts(&mut state, later + Duration::from_secs(8)));
    }

    #[test]
    fn nothing_starts_once_adit_ends() {
        let (mut state, now) = (State::default(), Instant::now());
        assert!(starts(&mut state, now));
        state.stop();
        state.ended(credential(), now);
        assert!(matches!(state.needed(now), Next::Fail(_)));
    }
}
