//! Masking keys of a client.

use crate::random;

/// Masking keys. Without them, a client's bytes could look like requests to a proxy that does not know WebSocket (RFC
/// 6455, section 10.3). Within TLS no proxy sees them, so a mixer with a random seed is enough.
pub struct Masks([u8; 8]);

impl Masks {
    pub fn new() -> Self {
        Self(random_bytes())
    }

    /// Returns the next key.
    pub fn next_key(&mut self) -> [u8; 4] {
        // SplitMix64 (Steele, Lea, Flood 2014).
        let state = u64::from_ne_bytes(self.0).wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0 = state.to_ne_bytes();
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bytes = (mixed ^ (mixed >> 31)).to_ne_bytes();
        [bytes[0], bytes[1], bytes[2], bytes[3]]
    }
}

/// Returns unpredictable bytes, as RFC 6455 requires for nonces and masks.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    random::bytes().expect("TLS has used the same source before")
}
