//! Random bytes of the system.

use std::io;

use aws_lc_rs::rand::{SecureRandom, SystemRandom};

/// Returns unpredictable bytes, which are good for keys.
///
/// # Errors
/// The system has no source of random bytes.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(bytes)
}
