//! How the demo can be told to misbehave.

/// What the demo is told to do wrong; each call takes effect at once.
#[derive(Debug, Default)]
pub struct Faults {}
