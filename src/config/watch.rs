//! Follows the configuration file.
