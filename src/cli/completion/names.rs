//! The names that exist now: contexts, namespaces, Services and tunnels.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    time::Duration,
};

use clap::Parser;
use clap_complete::CompletionCandidate;
use tokio::time::timeout;

use crate::{
    admin::{
        api::{
            answers::{Service, Services},
            services::{self, Query},
        },
        socket,
    },
    cli::{Cli, Globals, place::Place, report::CliError, status, up},
};

/// Time limit of an answer: a person waits for it at the prompt.
const WITHIN: Duration = Duration::from_secs(1);

/// Options of the line that say where the names are.
const WHERE: [&str; 6] = ["--config", "--context", "--namespace", "-n", "--kubeconfig", "--listen"];

/// Returns the global options of a line that is not complete.
pub fn globals(words: &[OsString]) -> Globals {
    let words: Vec<String> =
        words.iter().take_while(|word| *word != "--").map(|word| word.to_string_lossy().into_owned()).collect();
    let mut line = vec!["adit".to_owned(), "status".to_owned()];
    for (at, word) in words.iter().enumerate() {
        let name = word.split_once('=').map_or(&**word, |(name, _)| name);
        match (WHERE.contains(&name), words.get(at + 1)) {
            (true, _) if name != word => line.push(word.clone()),
            // An option without a value is the word to complete.
            (true, Some(value)) if !value.is_empty() => line.extend([word.clone(), value.clone()]),
            _ => {}
        }
    }
    let parsed = Cli::try_parse_from(line).or_else(|_| Cli::try_parse_from(["adit", "status"]));
    parsed.expect("the command has no required argument").globals
}

/// Returns the names that begin with the word, which may have more in front: `db=` of `--to db=postgres.shop`.
pub fn candidates(names: &[String], current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let (front, word) = current.rfind('=').map_or(("", &*current), |at| current.split_at(at + 1));
    let found = names.iter().filter(|name| name.starts_with(word));
    found.map(|name| CompletionCandidate::new(format!("{front}{name}"))).collect()
}

/// Returns the aliases and contexts.
pub fn contexts(globals: &Globals) -> Vec<String> {
    // The context may be the word to complete.
    let Ok(config) = (Globals { context: None, ..globals.clone() }).load() else { return Vec::new() };
    let (_, router) = crate::cli::router(config);
    let aliases = router.config.contexts.keys().cloned();
    let names: BTreeSet<_> = aliases.chain(router.http_contexts.namespaces.keys().map(ToString::to_string)).collect();
    names.into_iter().collect()
}

/// Returns the namespaces with Services.
pub fn namespaces(globals: &Globals) -> Vec<String> {
    let rows = rows(&Globals { namespace: None, ..globals.clone() });
    let names: BTreeSet<_> = of_cluster(&rows).filter_map(|row| row.namespace.clone()).collect();
    names.into_iter().collect()
}

/// Returns the Services, as `SERVICE.NAMESPACE`.
pub fn services(globals: &Globals) -> Vec<String> {
    of_rows(&rows(globals))
}

/// Returns the Services, and the hosts of routes.
pub fn targets(globals: &Globals) -> Vec<String> {
    let rows = rows(globals);
    let hosts = rows.iter().filter(|row| row.from != "service" && row.address.is_none() && !row.name.starts_with('*'));
    let mut names: BTreeSet<_> = hosts.map(|row| row.name.clone()).collect();
    names.extend(of_rows(&rows));
    names.into_iter().collect()
}

/// Returns the tunnels of the running adits.
pub fn tunnels(globals: &Globals) -> Vec<String> {
    let found = in_time(status::find(globals)).unwrap_or_default();
    found.into_iter().flat_map(|(_, status)| status.tunnels).map(|tunnel| tunnel.id).collect()
}

fn of_cluster(rows: &[Service]) -> impl Iterator<Item = &Service> {
    rows.iter().filter(|row| row.from == "service")
}

fn of_rows(rows: &[Service]) -> Vec<String> {
    let names = of_cluster(rows).filter_map(|row| row.name.split_once('/'));
    let names: BTreeSet<_> = names.map(|(namespace, service)| format!("{service}.{namespace}")).collect();
    names.into_iter().collect()
}

/// Returns the routes, and the Services of the context.
fn rows(globals: &Globals) -> Vec<Service> {
    in_time(list(globals)).unwrap_or_default()
}

async fn list(globals: &Globals) -> Result<Vec<Service>, CliError> {
    let place = Place::of(globals)?;
    let query = Query { context: Some(place.context().clone()), namespace: globals.namespace.clone(), pods: false };
    // An adit with another current context lists those of this one too, if it has the same kubeconfig.
    if let Some(socket) = socket::of_port(place.listener()).await
        && let Ok(status) = socket::status(&socket).await
        && status.overview.kubeconfig == place.router.config.http.kubeconfig.0
    {
        return Ok(socket::get::<Services>(&socket, &format!("services?{query}")).await?.services);
    }
    // Nobody expects a browser to open because of a Tab.
    if place.cluster().await.is_err() || place.clusters.sign_in(&place.id).is_some() {
        return Ok(services::routes(&place.router, place.listener()));
    }
    Ok(services::list(&place.clusters, &place.router, &query, place.listener()).await.services)
}

fn in_time<T>(work: impl Future<Output = Result<T, CliError>>) -> Option<T> {
    up::run_to_end(async { Ok(timeout(WITHIN, work).await.ok().and_then(Result::ok)) }).ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_line_that_is_not_complete_are_read() {
        let of = |line: &str| globals(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        let found = of("adit --context prod run -n shop --to db=p -- x --context y");
        assert_eq!((found.context.unwrap().as_str(), found.namespace.unwrap().as_str()), ("prod", "shop"));
        assert_eq!(of("adit url --kubeconfig=/k web").kubeconfig.as_deref(), Some("/k"));
        for line in ["adit --context ", "adit -n", "adit -n A*", "adit run --to"] {
            assert!(of(line).context.is_none() && of(line).namespace.is_none(), "{line}");
        }
    }

    #[test]
    fn the_name_of_a_target_stays_in_front() {
        let names = ["postgres.shop".to_owned(), "web.shop".to_owned()];
        let of = |word: &str| {
            let found = candidates(&names, OsStr::new(word));
            found.iter().map(|one| one.get_value().to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(of("db=po"), ["db=postgres.shop"]);
        assert_eq!(of("w"), ["web.shop"]);
        assert_eq!(of("").len(), 2);
    }
}
