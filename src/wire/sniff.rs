//! Tells protocols apart by their first bytes.

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tls,
    Http1,
    Http2,
}

/// What the first bytes of a connection tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniff {
    Is(Protocol),
    NeedMore,
    Unknown,
}

/// Returns what a connection speaks, from its first bytes: never a different answer for a longer prefix,
/// once it is not [`Sniff::NeedMore`].
pub fn sniff(_bytes: &[u8]) -> Sniff {
    todo!()
}
