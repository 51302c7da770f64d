//! Default values and default places.
