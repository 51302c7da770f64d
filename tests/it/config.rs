//! Configuration files, from disk to message.
