//! Sign-in of browsers: one token per process, and single-use codes.

use std::{
    collections::VecDeque,
    io,
    sync::Mutex,
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::random;

/// Lifetime of a code.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// Maximum number of valid codes. The oldest is evicted.
const MOST_CODES: usize = 16;

/// The keys of one process.
pub struct Keys {
    token: String,
    codes: Mutex<VecDeque<(String, Instant)>>,
}

impl Keys {
    /// # Errors
    /// The system has no random numbers.
    pub fn new() -> io::Result<Self> {
        Ok(Self { token: key()?, codes: Mutex::default() })
    }

    /// Returns the token: 128 bits as 32 hexadecimal digits.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Returns whether a text is the token. It compares hashes, so its timing reveals nothing about the token.
    pub fn is_token(&self, text: &str) -> bool {
        Sha256::digest(text) == Sha256::digest(&self.token)
    }

    /// Returns a new code, valid once within 60 s.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn issue(&self) -> io::Result<String> {
        let code = key()?;
        let mut codes = self.codes.lock().expect("no panic while the lock is held");
        if codes.len() >= MOST_CODES {
            codes.pop_front();
        }
        codes.push_back((code.clone(), Instant::now() + GOOD_FOR));
        Ok(code)
    }

    /// Invalidates a code, and returns whether it was valid.
    pub fn redeem(&self, code: &str) -> bool {
        self.redeem_at(code, Instant::now())
    }

    fn redeem_at(&self, code: &str, now: Instant) -> bool {
        let wanted = Sha256::digest(code);
        let mut codes = self.codes.lock().expect("no panic while the lock is held");
        codes.retain(|(_, until)| *until > now);
        let before = codes.len();
        codes.retain(|(code, _)| Sha256::digest(code) != wanted);
        codes.len() < before
    }
}

fn key() -> io::Result<String> {
    Ok(HEXLOWER.encode(&random::bytes::<16>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_good_once_and_for_a_minute() {
        let keys = Keys::new().unwrap();
        let (first, second) = (keys.issue().unwrap(), keys.issue().unwrap());
        assert!(first != second && first.len() == 32 && !keys.is_token(&first) && !keys.redeem(keys.token()));
        assert!(keys.redeem(&first) && !keys.redeem(&first) && !keys.redeem(""));
        assert!(!keys.redeem_at(&second, Instant::now() + GOOD_FOR));
        assert!(!keys.redeem(&second), "it is forgotten");
        assert!(keys.is_token(keys.token()) && !keys.is_token(""));
    }

    #[test]
    fn codes_that_nobody_uses_are_bounded() {
        let keys = Keys::new().unwrap();
        let codes: Vec<_> = (0..2 * MOST_CODES).map(|_| keys.issue().unwrap()).collect();
        assert!(!keys.redeem(&codes[0]) && keys.redeem(codes.last().unwrap()));
    }
}
