//! What a proxy adds to, and takes from, the headers.
