//! The set of listeners, and how a reload changes it.
