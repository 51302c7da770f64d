//! One listener for every protocol.
