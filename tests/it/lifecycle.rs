//! Start, reload, drain, and tunnels over time.
