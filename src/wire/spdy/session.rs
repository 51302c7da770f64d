//! The state of one SPDY/3.1 connection, without I/O.
