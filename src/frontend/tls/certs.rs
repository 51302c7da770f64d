//! Certificates for error pages, minted per name.
