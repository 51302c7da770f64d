//! The binary as a person runs it: output, exit codes, errors.
