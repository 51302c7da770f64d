//! A tunnel's stream: counted, and replayed elsewhere while its pod cannot have acted.
