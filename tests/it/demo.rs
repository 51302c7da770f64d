//! The demo world, seen by its own clients.
