//! End to end, on the cluster that KUBECONFIG names: the binary, real clients, real pods.
//!
//! ```text
//! cargo test --features e2e --test e2e
//! ```
//!
//! The tests of `load` that break the cluster itself are left out by default: they take turns, and need the program
//! that restarts its components, in `ADIT_E2E_CLUSTER`:
//!
//! ```text
//! cargo test --features e2e --test e2e -- --ignored --test-threads 1
//! ```
//!
//! Needs kubectl, curl, openssl, psql, redis-cli, mariadb, ssh, rsync and script on PATH. The suite makes the namespace `adit-e2e` and leaves it,
//! so that the next run starts at once. `ADIT_E2E_IMAGE` is the image of the servers (see `world.yaml`);
//! `ADIT_E2E_PROTOCOL` is the transport that the cluster is expected to lead to, checked where it is set.

#[path = "../it/browser/chromium.rs"]
#[allow(dead_code, reason = "the suite of the browser uses more of it")]
mod chromium;
mod clients;
mod databases;
mod death;
mod expose;
mod http;
mod jump;
mod load;
mod programs;
mod proxy;
mod reload;
mod support;
mod tcp;
mod tunnels;
