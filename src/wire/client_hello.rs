//! The TLS ClientHello: just enough of it to know whom the client wants.
