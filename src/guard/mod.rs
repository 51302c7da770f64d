//! Admits only requests that have exactly one interpretation, and only from permitted origins.

pub mod locks;
pub mod normaliser;
pub mod origin;
