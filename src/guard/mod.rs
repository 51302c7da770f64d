//! Admits requests with one interpretation only, and only from permitted origins.

pub mod locks;
pub mod normaliser;
pub mod origin;
