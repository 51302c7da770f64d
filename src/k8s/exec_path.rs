//! Where credential plugins are found.
