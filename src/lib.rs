//! adit: every Service of a Kubernetes cluster by name, on demand.
//!
//! A connection passes through the modules from left to right:
//!
//! ```text
//! config ----> routing                          what the user asked for, and what a name means
//!                 |
//! listener -> frontend -> tunnel -> backend -> k8s    accept, understand, hold open, reach, ask
//!     \__________\___________\________\__ io, wire    streams, and bytes <-> values
//! ```
//!
//! - A frontend knows protocols and names, but not Kubernetes. A backend knows Kubernetes, but no names.
//! - [`app`] connects the modules. Only [`cli`] prints and exits.
//! - `ARCHITECTURE.md` follows one request file by file, and has the table of allowed imports.

pub mod io;
pub mod wire;

pub mod atomic_file;
pub mod dns;
pub mod drain;
pub mod error_code;
pub mod html;
pub mod journal;
pub mod metrics;
pub mod printable;
pub mod random;
pub mod secrets;
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
