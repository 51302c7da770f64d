//! What runs: tunnels, listeners, the last reload.
