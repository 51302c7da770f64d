//! The one task that owns a Session.
