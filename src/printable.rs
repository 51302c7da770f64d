//! Text of clusters, pods, relays and certificates, made safe to show. It may contain escapes, which could change a
//! terminal's title, its screen, or the lines above, and line ends, which would forge a line of a log.

/// Returns a text with a space in place of each control character.
pub fn line(text: &str) -> String {
    text.chars().map(|each| if each.is_control() { ' ' } else { each }).collect()
}

/// Does the same, and removes white space at both ends.
pub fn printable(text: &str) -> String {
    line(text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_in_the_text_of_others_do_not_reach_a_terminal() {
        assert_eq!(printable("a\x1b[31mb\r\nc\n"), "a [31mb  c");
        assert_eq!(line("no\u{1b}]0;owned\u{7}\u{9b}31m\n"), "no ]0;owned  31m ");
    }
}
