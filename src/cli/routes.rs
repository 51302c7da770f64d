//! `adit routes`: what can be reached, with the URL of each.

use std::io;

use super::{
    Globals, Output,
    place::Place,
    report::{CliError, print, table},
    running::Running,
};
use crate::admin::{
    api::{
        answers::Services,
        services::{self, Query},
    },
    socket,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  adit routes -A\n  adit routes -n shop --context prod -o json")]
pub struct Args {
    /// List the Services of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Print JSON
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let place = Place::of(globals)?;
    let (context, namespace) = (place.context().clone(), place.namespace.clone());
    let namespaces = (!args.all_namespaces).then(|| namespace.clone());
    let query = Query { context: Some(context.clone()), namespace: namespaces, pods: false };
    // It is signed in already.
    let mut found = match Running::find(globals, &place.router).await {
        Some(running) => socket::get::<Services>(&running.socket, &format!("services?{query}")).await?,
        None => services::list(&place.clusters, &place.router, &query, place.listener()).await,
    };
    if !found.problems.is_empty() {
        return Err(found.problems.swap_remove(0).into());
    }
    let rows = found.services;
    match args.output {
        Some(Output::Json) => print(&format!("{}\n", serde_json::to_string_pretty(&rows).map_err(io::Error::other)?)),
        None if rows.is_empty() => {
            print(&format!("no Services in namespace {namespace} of context {context}; -A lists all namespaces\n"))
        }
        None => {
            let mut lines = vec![["NAME", "PORT", "URL"].map(str::to_owned).to_vec()];
            lines.extend(
                rows.into_iter().map(|row| vec![row.name, row.port.unwrap_or_else(|| "-".to_owned()), row.url]),
            );
            print(&table(&lines))
        }
    }
}
