//! Look-ups and errors against the demo API server.
