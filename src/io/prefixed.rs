//! A stream whose first bytes were read already and are replayed.

use bytes::Bytes;

/// Reads `prefix` first, then what the inner stream yields; writes go through.
#[derive(Debug)]
pub struct Prefixed<T> {
    _prefix: Bytes,
    _inner: T,
}

impl<T> Prefixed<T> {
    pub fn new(prefix: Bytes, inner: T) -> Self {
        Self { _prefix: prefix, _inner: inner }
    }
}
