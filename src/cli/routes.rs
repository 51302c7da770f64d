//! `adit routes`: lists routes and Services, with the URL of each.

use std::{
    io::{self, Write},
    net::SocketAddr,
};

use super::{
    Globals, Output,
    place::{self, Place},
    report::{CliError, print, table},
};
use crate::admin::{
    api::{
        answers::{Service, Services},
        services::{self, Query},
    },
    socket,
};
use crate::k8s::list;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  adit routes -A\n  adit routes -A web\n  adit routes -n shop --context prod -o json"
)]
pub struct Args {
    /// List only the names that contain this text
    filter: Option<String>,
    /// List the Services of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Output format [default: a table]
    #[arg(short, long, value_enum)]
    output: Option<Output>,
}

pub async fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let (clusters, router) = super::router(globals.load()?);
    let place = match Place::at(clusters, router.clone(), globals) {
        Ok(place) => place,
        // The routes of the configuration need no context of their own.
        Err(error) => {
            let listener = router.config.http.listen.first().map_or(0, SocketAddr::port);
            show(&args, services::routes(&router, listener))?;
            return Err(error);
        }
    };
    let (context, namespace) = (place.context().clone(), place.namespace.clone());
    let namespaces = (!args.all_namespaces).then(|| namespace.clone());
    let query = Query { context: Some(context.clone()), namespace: namespaces, ..Query::default() };
    // A running adit is signed in already.
    let (running, router) = place::serving(globals, &place.clusters, place.router.clone()).await?;
    let is_running = running.is_some();
    let mut found = match running {
        Some(running) => socket::get::<Services>(&running.socket, &format!("services?{query}")).await?,
        None => services::list(&place.clusters, &router, &query, place.listener()).await,
    };
    if !found.problems.is_empty() {
        // These are the routes of the configuration.
        show(&args, found.services)?;
        return Err(found.problems.swap_remove(0).into());
    }
    let rows = found.services;
    let has_services = rows.iter().any(|row| row.from == "service");
    // A user without permission to read namespaces still gets the list.
    let lacks = !has_services
        && !args.all_namespaces
        && list::has_namespace(&*place.cluster().await?, &namespace).await.is_ok_and(|exists| !exists);
    let note = match (lacks, args.all_namespaces) {
        (true, _) => format!("namespace {namespace} does not exist in context {context}; -A lists all namespaces\n"),
        (false, false) => {
            format!("no Services in namespace {namespace} of context {context}; -A lists all namespaces\n")
        }
        (false, true) => format!("no Services in context {context}\n"),
    };
    let has_urls = rows.iter().any(|row| row.url.starts_with("http"));
    let is_empty = show(&args, rows)?;
    if has_urls && !is_running && !is_empty {
        place::note_not_running(place.listener());
    }
    match args.output {
        Some(Output::Json) => Ok(()),
        None if is_empty && has_services => print(&format!("no name contains {:?}\n", args.filter.unwrap_or_default())),
        None if is_empty => print(&note),
        None => {
            // Routes of the configuration are always listed, so the note is about Services only.
            if !has_services {
                let _ = io::stderr().write_all(note.as_bytes());
            }
            Ok(())
        }
    }
}

/// Prints the rows that the user wants to see. Returns whether there is none; then it prints no table.
fn show(args: &Args, mut rows: Vec<Service>) -> Result<bool, CliError> {
    if let Some(text) = &args.filter {
        let text = text.to_lowercase();
        rows.retain(|row| row.name.to_lowercase().contains(&text));
    }
    let is_empty = rows.is_empty();
    match args.output {
        Some(Output::Json) => print(&format!("{}\n", serde_json::to_string_pretty(&rows).map_err(io::Error::other)?))?,
        None if is_empty => {}
        None => {
            let mut lines = vec![["NAME", "PORT", "URL"].map(str::to_owned).to_vec()];
            let or_none = |cell: String| if cell.is_empty() { "-".to_owned() } else { cell };
            lines.extend(rows.into_iter().map(|row| {
                let address = address(&row);
                vec![row.name, or_none(row.port.unwrap_or_default()), or_none(address)]
            }));
            print(&table(&lines))?;
        }
    }
    Ok(is_empty)
}

/// Returns the URL of a row. Only the address, if its protocol has no URL or is not known.
fn address(row: &Service) -> String {
    match row.url.split_once("://") {
        Some(("tcp" | "tls", address)) => address.to_owned(),
        Some((_, address)) if ["unknown", "tcp"].contains(&&*row.speaks) => address.trim_end_matches('/').to_owned(),
        _ => row.url.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_protocols_with_urls_have_a_url() {
        for (speaks, url, shown) in [
            ("http", "http://web.shop.localhost:8989/", "http://web.shop.localhost:8989/"),
            ("grpc", "http://api.shop.localhost:8989/", "http://api.shop.localhost:8989/"),
            ("unknown", "http://7001.tools.shop.localhost:8989/", "7001.tools.shop.localhost:8989"),
            ("postgres", "postgresql://db.test:1/?sslmode=require", "postgresql://db.test:1/?sslmode=require"),
            ("postgres", "tcp://127.0.0.1:15432", "127.0.0.1:15432"),
            ("ssh", "", ""),
            ("tcp", "tls://c.test:8443", "c.test:8443"),
        ] {
            let row = Service { speaks: speaks.to_owned(), url: url.to_owned(), ..Service::default() };
            assert_eq!(address(&row), shown, "{speaks} {url}");
        }
    }
}
