//! The names that exist now: contexts, namespaces, Services and tunnels.

use std::{
    collections::BTreeSet,
    env,
    ffi::{OsStr, OsString},
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::Parser;
use clap_complete::CompletionCandidate;

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
    let words = words.iter().take_while(|word| *word != "--");
    let words: Vec<String> = words.map(|word| expanded(&word.to_string_lossy(), |name| env::var(name).ok())).collect();
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

/// Returns a word of the line as the shell will pass it: without quotes and backslashes, with the home folder and variables.
fn expanded(word: &str, variable: impl Fn(&str) -> Option<String>) -> String {
    let (mut text, mut quote, mut rest) = (String::new(), None, word);
    if let Some(below) = word.strip_prefix('~').filter(|below| below.is_empty() || below.starts_with('/')) {
        text += &variable("HOME").unwrap_or_else(|| "~".to_owned());
        rest = below;
    }
    while let Some(char) = rest.chars().next() {
        rest = &rest[char.len_utf8()..];
        match char {
            '\'' | '"' if quote.is_none() => quote = Some(char),
            char if quote == Some(char) => quote = None,
            '\\' if quote != Some('\'') => {
                let next = rest.chars().next();
                text.extend(next);
                rest = &rest[next.map_or(0, char::len_utf8)..];
            }
            '$' if quote != Some('\'') => {
                let in_braces = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
                let end = rest.find(|char: char| !char.is_ascii_alphanumeric() && char != '_').unwrap_or(rest.len());
                let (name, behind) = in_braces.unwrap_or_else(|| rest.split_at(end));
                if name.is_empty() {
                    text.push('$');
                } else {
                    text += &variable(name).unwrap_or_default();
                }
                rest = behind;
            }
            char => text.push(char),
        }
    }
    text
}

/// Returns the names that begin with the word, which may have more in front: `db=` of `--to db=postgres.shop`.
pub fn candidates(names: &[String], current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    let (front, word) = current.rfind('=').map_or(("", &*current), |at| current.split_at(at + 1));
    let found = names.iter().filter(|name| name.starts_with(word));
    found.map(|name| CompletionCandidate::new(format!("{front}{name}"))).collect()
}

/// Returns the names that are found within [`WITHIN`]. A thread looks for them: a file on a stalled mount blocks its reader.
pub fn in_time(names: fn(&Globals) -> Vec<String>, globals: &Globals) -> Vec<String> {
    let (found_tx, found) = mpsc::channel();
    let globals = globals.clone();
    // Without a thread, the channel is closed at once.
    let _ = thread::Builder::new().spawn(move || found_tx.send(names(&globals)));
    found.recv_timeout(WITHIN).unwrap_or_default()
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
    let found = up::run_to_end(status::find(globals)).unwrap_or_default();
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
    up::run_to_end(list(globals)).unwrap_or_default()
}

async fn list(globals: &Globals) -> Result<Vec<Service>, CliError> {
    let place = Place::of(globals)?;
    // Nobody expects a browser to open because of a Tab.
    let (context, namespace) = (Some(place.context().clone()), globals.namespace.clone());
    let query = Query { context, namespace, pods: false, signed_in: true };
    // An adit with another current context lists those of this one too, if it has the same kubeconfig.
    if let Some(socket) = socket::of_port(place.listener()).await
        && let Ok(status) = socket::status(&socket).await
        && status.overview.kubeconfig == place.router.config.http.kubeconfig.0
    {
        return Ok(socket::get::<Services>(&socket, &format!("services?{query}")).await?.services);
    }
    Ok(services::list(&place.clusters, &place.router, &query, place.listener()).await.services)
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
    fn words_are_expanded_as_the_shell_will_do_it() {
        let of = |word: &str| {
            expanded(word, |name| {
                [("HOME", "/h"), ("A_1", "a b")]
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_owned())
            })
        };
        for (word, wanted) in [
            ("~/k", "/h/k"),
            ("~", "/h"),
            ("~ana/k", "~ana/k"),
            ("'~/k'", "~/k"),
            ("--config=~/k", "--config=~/k"),
            ("$HOME/k", "/h/k"),
            ("\"${A_1}/k\"", "a b/k"),
            ("'$HOME'", "$HOME"),
            (r"a\ b\$", "a b$"),
            ("'a b'/\"c", "a b/c"),
            ("${HOME", "${HOME"),
            ("é$NOBODY\\", "é"),
        ] {
            assert_eq!(of(word), wanted, "{word}");
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
