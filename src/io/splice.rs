//! Copies between two streams, both ways, with half-close.
