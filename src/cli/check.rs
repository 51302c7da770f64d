//! `adit check`: validates the configuration file.

use std::{collections::BTreeSet, io};

use super::{
    Globals,
    doctor::report::quoted,
    report::{CliError, colours, print},
};
use crate::{
    config::{
        Config,
        near::near,
        problem::Problem,
        validate::{self, NamedContext},
    },
    routing::Contexts,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  adit check\n  adit check adit.yaml\n\n\
                  It checks every key, and whether the files that the configuration names can be used. It warns of\n\
                  contexts that the kubeconfig does not have.\nExit codes: 0 valid; 2 not valid")]
pub struct Args {
    /// Configuration file [default: that of --config]
    file: Option<std::path::PathBuf>,
}

pub fn run(globals: &Globals, args: Args) -> Result<(), CliError> {
    let path = args.file.or(globals.config_path().0);
    let path = path.ok_or_else(|| {
        CliError::usage("there is no home folder to look for a configuration in").hint(Some("adit check FILE"))
    })?;
    let bytes = validate::read(&path)?;
    let (config, named) = validate::check(&path, &bytes).map_err(|error| match error.whole() {
        Some(_) => error.into(),
        None => CliError::usage(format!("{} is not valid\n{}", path.display(), error.snippets(colours(&io::stderr())))),
    })?;
    let jumps = config.tcp.routes.values().filter(|route| route.destination.jump.is_some()).count();
    let parts = [
        (config.http.routes.len(), "HTTP route"),
        (config.tcp.routes.len() - jumps, "TCP route"),
        (jumps, "jump"),
        (config.sni.as_ref().map_or(0, |sni| sni.routes.len()), "SNI route"),
        (config.local.len(), "local port"),
    ];
    let parts: Vec<String> = parts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}{}", if *count == 1 { "" } else { "s" }))
        .collect();
    let is_empty = bytes.trim_ascii().is_empty();
    let parts = match parts.is_empty() {
        true if is_empty => "it is empty, so that every setting has its default".to_owned(),
        true => "no routes".to_owned(),
        false => parts.join(", "),
    };
    let notes: String = config.notes.iter().map(|note| format!("note: {note}\n")).collect();
    // `adit trust install` takes the names from the configuration, including those that `--names` does not accept.
    let install = match globals.config_path().0.as_ref() == Some(&path) && globals.config.is_none() {
        true => "adit trust install".to_owned(),
        false => format!("adit --config {} trust install", quoted(&path.display().to_string())),
    };
    let beyond: String = super::trust::beyond(&config)
        .iter()
        .map(|name| format!("note: https for {name} needs '{install}'\n"))
        .collect();
    let warnings = unknown_contexts(&config, &named);
    print(&format!("{} is valid: {parts}\n{warnings}{notes}{beyond}", path.display()))
}

/// Returns a line for each key that names a context that does not exist. Empty if the kubeconfig cannot be read or has no
/// contexts: the configuration may be for another machine.
fn unknown_contexts(config: &Config, named: &[NamedContext]) -> String {
    let (_, router) = super::router(config.clone());
    let warning = |NamedContext { key, place, name }: &NamedContext| {
        let is_alias = !key.starts_with("contexts.") && config.contexts.contains_key(name.as_str());
        // The top-level keys are for both kubeconfigs.
        let of_key: &[&Contexts] = match key.split_once('.') {
            Some(("http" | "sni", _)) => &[&router.http_contexts],
            Some(("tcp", _)) => &[&router.tcp_contexts],
            _ => &[&router.http_contexts, &router.tcp_contexts],
        };
        let known: BTreeSet<&str> =
            of_key.iter().flat_map(|contexts| contexts.namespaces.keys()).map(|name| name.as_str()).collect();
        if is_alias || known.is_empty() || !of_key.iter().all(|contexts| contexts.lacks(name)) {
            return None;
        }
        let near = near(name, known, |name| name);
        let advice = match near.as_slice() {
            [] => "kubectl config get-contexts lists all".to_owned(),
            near => format!("did you mean {}?", near.join(" or ")),
        };
        let message = format!("the kubeconfig has no context {name}: {advice}");
        let problem = Problem { path: key.clone(), place: *place, message, hint: None };
        Some(format!("warning: {}\n", problem.line()))
    };
    named.iter().filter_map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_that_the_kubeconfig_lacks_are_warned_of_with_their_line() {
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let warnings = |rest: &str| {
            let routes = "routes: {a.localhost: {context: prdo, namespace: a, service: x}, b.localhost: {context: p, namespace: a, service: x}}";
            let file = kubeconfig.display();
            let text = format!(
                "http: {{k8s: {{kubeconfig: '{file}', {routes}}}}}\ntcp: {{k8s: {{kubeconfig: '{file}'}}}}\n{rest}"
            );
            let (config, named) = validate::check(std::path::Path::new("c"), text.as_bytes()).ok().unwrap();
            unknown_contexts(&config, &named)
        };
        let contexts = "contexts: [{name: prod, context: {cluster: c, user: u}}], clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: u, user: {}}]";
        std::fs::write(&kubeconfig, format!("{{apiVersion: v1, kind: Config, {contexts}}}")).unwrap();
        let said = warnings("contexts: {p: {name: prod}, q: {name: nosuchctx}}\ndefault_context: prd\n");
        for line in [
            "http.k8s.routes.\"a.localhost\".context: the kubeconfig has no context prdo: did you mean prod? (line 1",
            "contexts.q.name: the kubeconfig has no context nosuchctx: kubectl config get-contexts lists all (line 3",
            "default_context: the kubeconfig has no context prd: did you mean prod? (line 4",
        ] {
            assert!(said.contains(line), "{said}");
        }
        assert_eq!(said.lines().count(), 3, "{said}");
        std::fs::write(&kubeconfig, "{apiVersion: v1, kind: Config}").unwrap();
        assert_eq!(warnings("default_context: prd\n"), "", "the configuration may be for another machine");
    }
}
