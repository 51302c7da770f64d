//! Aliases for contexts that no hostname can contain.

use super::Contexts;

/// Returns the advice to give a context an alias.
pub fn advice(context: &str, contexts: &Contexts) -> String {
    format!("write 'contexts: {{{}: {{name: {context:?}}}}}' into the configuration", free(context, contexts))
}

/// Returns the lines of the configuration that give a context an alias.
pub fn lines(context: &str, contexts: &Contexts) -> String {
    format!("contexts:\n  {}: {{name: {context:?}}}\n", free(context, contexts))
}

/// Returns an alias that no context has: the last part of the long names that clouds use.
pub fn free(context: &str, contexts: &Contexts) -> String {
    let last = context.rsplit(['/', '@', ':', '_', '|', ' ']).find(|part| !part.is_empty()).unwrap_or_default();
    let fitting = |char: char| if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '-' };
    let short: String = last.chars().map(fitting).take(40).collect();
    let short = match short.trim_matches('-') {
        "" => "cluster",
        short => short,
    };
    let numbered = (2..).map(|number| format!("{short}-{number}"));
    let is_free = |name: &String| !contexts.namespaces.keys().any(|known| known.as_str() == name);
    std::iter::once(short.to_owned()).chain(numbered).find(is_free).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Namespace;

    #[test]
    fn a_short_name_is_the_last_part_and_free() {
        for (context, known, short) in [
            ("arn:aws:eks:eu-central-1:123:cluster/Prod", &[][..], "prod"),
            ("gke_my-project_europe-west1_shop", &[], "shop"),
            ("kubernetes-admin@kubernetes", &["kubernetes"], "kubernetes-2"),
            ("a.b c/", &[], "c"),
            ("__", &[], "cluster"),
            ("x/é", &[], "cluster"),
        ] {
            let namespaces = known.iter().map(|name| (name.parse().unwrap(), Ok(Namespace::default()))).collect();
            assert_eq!(free(context, &Contexts { namespaces, ..Contexts::default() }), short, "{context}");
        }
    }
}
