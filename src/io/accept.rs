//! Accept loops that survive errors.
