//! An error as a page, as text, or as JSON.
