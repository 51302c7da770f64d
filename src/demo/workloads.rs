//! What runs in the demo's pods.
