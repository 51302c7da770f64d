//! The objects of the little world.
