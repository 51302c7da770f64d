//! Suggests known names for an unknown one.

/// Maximum number of suggestions.
const MOST: usize = 3;

/// Minimum letters for a match by substring. Shorter words are part of too many names.
const SHORTEST_PART: usize = 3;

/// Returns up to three of `names` that `name` may stand for, the most similar first. `word` returns the part of a name to
/// compare; case, `-` and `_` are ignored.
pub fn near<T: Ord>(name: &str, names: impl IntoIterator<Item = T>, word: impl Fn(&T) -> &str) -> Vec<T> {
    let wanted = plain(name);
    let mut scored: Vec<(usize, T)> =
        names.into_iter().filter_map(|other| Some((distance(&wanted, &plain(word(&other)))?, other))).collect();
    scored.sort_unstable();
    scored.into_iter().take(MOST).map(|(_, other)| other).collect()
}

fn plain(name: &str) -> String {
    name.to_ascii_lowercase().replace(['-', '_'], "")
}

/// Returns the number of letters that are swapped, changed, added or left out. `None`: too many for a typing mistake, and neither
/// word contains the other.
fn distance(a: &str, b: &str) -> Option<usize> {
    let distance = strsim::osa_distance(a, b);
    let is_part = a.len().min(b.len()) >= SHORTEST_PART && (a.contains(b) || b.contains(a));
    (is_part || distance <= (a.len().max(b.len()) / 3).max(1)).then_some(distance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_pen_and_parts_of_names_are_seen() {
        let of = |name: &str, names: &[&'static str]| near(name, names.iter().copied(), |name| name);
        assert_eq!(of("argo", &["argocd-server", "postgres", "argo-x"]), ["argo-x", "argocd-server"]);
        assert_eq!(of("wbe", &["web", "redis"]), ["web"]);
        assert_eq!(of("idleTimeout", &["idle_timeout", "listen"]), ["idle_timeout"]);
        for (wrong, right) in [("listn", "listen"), ("contxt", "context"), ("prot", "port"), ("routess", "routes")] {
            assert_eq!(of(wrong, &["kubeconfig", right]), [right]);
        }
        assert!(of("foo", &["listen", "db", "f"]).is_empty());
        assert!(of("", &["listen"]).is_empty());
    }
}
