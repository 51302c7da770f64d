//! The integration suite: whole app, real sockets, the demo API server as the cluster.

mod api;
#[cfg(feature = "browser")]
mod browser;
mod cli;
mod config;
mod corpus;
mod databases;
mod demo;
mod docs;
mod endurance;
mod expose;
mod front;
mod gateways;
mod http;
mod jump;
mod k8s;
mod kubeconfigs;
mod kubectl;
mod layers;
mod lifecycle;
mod names;
mod oidc;
mod process;
mod programs;
mod protocols;
mod relay;
mod run;
mod services;
mod sign_in;
mod sni;
mod socks;
mod support;
mod tcp;
mod tls;
mod tunnels;
mod watches;
