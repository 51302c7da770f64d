//! What changed between two configurations.
