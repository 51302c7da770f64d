//! Logging: format, filter, colour.
