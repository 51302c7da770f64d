//! What is let in: requests that can be read in one way only, from where they may come.

pub mod locks;
pub mod normaliser;
pub mod origin;
