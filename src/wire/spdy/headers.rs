//! SPDY/3.1 header blocks.
