//! The Unix socket that adit status and adit stop talk to.
