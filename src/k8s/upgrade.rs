//! The upgraded connection to a pod: two envelopes, and the choice between them.
