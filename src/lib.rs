//! adit: the level way into a Kubernetes cluster.
//!
//! One connection's way through the crate, left to right, is also the order of the modules:
//!
//! ```text
//! config ----> routing                          what the user asked for, and what a name means
//!                 |
//! listener -> frontend -> tunnel -> backend -> k8s    accept, understand, hold open, reach, ask
//!     \__________\___________\________\__ io, wire    streams, and bytes <-> values
//! ```
//!
//! - A frontend knows protocols and names, never Kubernetes; a backend knows Kubernetes, never names.
//! - [`app`] puts the pieces together; [`cli`] is the only module that prints and exits.
//! - `ARCHITECTURE.md` walks through one request file by file and holds the table of who may use whom.

pub mod io;
pub mod wire;

pub mod dns;
pub mod drain;
pub mod error_code;
pub mod html;
pub mod journal;
pub mod metrics;
pub mod subprocess;
pub mod telemetry;
pub mod tls;
pub mod trust;

pub mod config;
pub mod routing;

pub mod k8s;

pub mod backend;

pub mod tunnel;

pub mod guard;

pub mod frontend;

pub mod listener;

pub mod admin;

pub mod dashboard;

pub mod relay;

pub mod service;

pub mod demo;

pub mod app;
pub mod cli;
