//! From the file's shape to the configuration, with every problem named.
