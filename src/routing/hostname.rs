//! The grammar of dynamic hostnames: parse and format.
