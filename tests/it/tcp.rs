//! TCP routes, from a client to a pod of the demo.
