//! Connections to the pod, pooled.
