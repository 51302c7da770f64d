//! The HTTP front, from a client to a pod of the demo.
