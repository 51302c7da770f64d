//! A kubectl that we did not write, against the demo API server.
