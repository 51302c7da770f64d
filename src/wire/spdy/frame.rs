//! SPDY/3.1 frames as Kubernetes speaks them.
