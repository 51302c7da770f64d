//! The states of one tunnel, pure.
