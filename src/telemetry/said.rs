//! Removes escape sequences and secrets from what a credential plugin or a command says.
//!
//! Secrets of plugins are detected by their source (arguments and variables of the kubeconfig, the plugin's own answer), by the
//! name before them (`token=`, `Bearer`), and by their form. URLs keep their form apart from named secrets, because users have
//! to open them.

use crate::secrets::is_secret_name;

/// Maximum length of a line.
const LONGEST: usize = 500;

/// Replacement for a secret.
const HIDDEN: &str = "***";

/// Minimum length of a secret of a plugin: a shorter value may be an ordinary word.
const SHORTEST_SECRET: usize = 6;

/// From this length on, a mix of letters and digits counts as a key or a token.
const LONG_WORD: usize = 32;

/// Prefixes of tokens: JWT, EKS, Google, OpenShift, GitHub, GitLab, Vault.
const BEGINNINGS: [&str; 9] = ["eyJ", "k8s-aws-v1.", "ya29.", "sha256~", "ghp_", "gho_", "ghs_", "glpat-", "hvs."];

/// Values that must not be shown.
#[derive(Clone, Default)]
pub struct Secrets(Vec<String>);

impl Secrets {
    pub fn add(&mut self, value: &str) {
        self.add_longer(value, SHORTEST_SECRET);
    }

    /// Adds the lines of a value that have at least `shortest` bytes.
    pub fn add_longer(&mut self, value: &str, shortest: usize) {
        // Each line of a multi-line secret, such as a PEM, counts separately.
        let lines = value.lines().map(str::trim).filter(|line| line.len() >= shortest);
        self.0.extend(lines.map(str::to_owned));
    }

    /// Returns the length of the longest value in bytes.
    pub fn longest(&self) -> usize {
        self.0.iter().map(String::len).max().unwrap_or(0)
    }

    /// Returns the first place from `at` on where a text can be cut without leaving a part of a value.
    pub fn cut(&self, text: &[u8], at: usize) -> usize {
        let end = |secret: &String| {
            let from = (at + 1).saturating_sub(secret.len());
            let found = text.get(from..)?.windows(secret.len()).position(|part| part == secret.as_bytes())? + from;
            (found < at).then_some(found + secret.len())
        };
        self.0.iter().filter_map(end).max().unwrap_or(at)
    }

    /// Returns a line with the values hidden.
    pub fn hide(&self, line: &str) -> String {
        self.0.iter().fold(line.to_owned(), |line, secret| line.replace(secret.as_str(), HIDDEN))
    }
}

/// Returns a line that is safe to show. `None`: nothing is left of it.
pub fn clean(line: &[u8], secrets: &Secrets) -> Option<String> {
    let plain = without_escapes(&String::from_utf8_lossy(line));
    let hidden = by_looks(&by_name(&secrets.hide(plain.trim())));
    let cut: String = hidden.chars().take(LONGEST).collect();
    (!cut.is_empty()).then_some(cut)
}

/// Removes escape sequences (ECMA-48), control characters, and characters that change the text direction.
pub fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\x1b' => match chars.next() {
                Some('[') => skip_control_sequence(&mut chars),
                Some(']' | 'P' | 'X' | '^' | '_') => skip_string(&mut chars),
                // Intermediate bytes, then a final byte.
                Some(' '..='/') => {
                    while chars.next_if(|char| (' '..='/').contains(char)).is_some() || chars.next().is_none() {}
                }
                _ => {}
            },
            '\u{9b}' => skip_control_sequence(&mut chars),
            '\u{90}' | '\u{9d}' => skip_string(&mut chars),
            '\t' => plain.push(' '),
            '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' => {}
            char if char.is_control() => {}
            char => plain.push(char),
        }
    }
    plain
}

fn skip_control_sequence(chars: &mut impl Iterator<Item = char>) {
    for char in chars.by_ref() {
        if ('@'..='~').contains(&char) {
            return;
        }
    }
}

/// Skips until BEL or the string terminator.
fn skip_string(chars: &mut std::iter::Peekable<impl Iterator<Item = char>>) {
    while let Some(char) = chars.next() {
        match char {
            '\x07' | '\u{9c}' => return,
            '\x1b' => {
                chars.next_if_eq(&'\\');
                return;
            }
            _ => {}
        }
    }
}

fn is_of_name(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_' || char == '-'
}

fn ends_value(char: char) -> bool {
    char.is_whitespace() || "\"'&,;{}()<>".contains(char)
}

/// Hides the value after the name of a secret: `token=abc`, `"token": "abc"`, `Bearer abc`.
fn by_name(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = rest.find(is_of_name) {
        let (before, from) = rest.split_at(start);
        shown.push_str(before);
        let end = from.find(|char| !is_of_name(char)).unwrap_or(from.len());
        let (name, behind) = from.split_at(end);
        shown.push_str(name);
        rest = behind;
        let is_scheme = name.eq_ignore_ascii_case("bearer") || name.eq_ignore_ascii_case("basic");
        if !is_scheme && !is_secret_name(name) {
            continue;
        }
        let value = behind.trim_start_matches(|char: char| !is_scheme && matches!(char, '"' | '\''));
        let value = value.trim_start();
        let value = match value.strip_prefix([':', '=']) {
            Some(value) => value.trim_start().trim_start_matches(['"', '\'']),
            None if is_scheme && value.len() < behind.len() => value,
            // A command-line option.
            None if name.starts_with('-') && value.len() < behind.len() => value,
            None => continue,
        };
        let length = value.find(ends_value).unwrap_or(value.len());
        if is_sentence(name, behind, value, length) {
            continue;
        }
        // `Authorization: Bearer abc`: the scheme is not secret.
        let word = &value[..length];
        if word.eq_ignore_ascii_case("bearer") || word.eq_ignore_ascii_case("basic") || length < SHORTEST_SECRET {
            continue;
        }
        shown.push_str(&behind[..behind.len() - value.len()]);
        shown.push_str(HIDDEN);
        rest = &value[length..];
    }
    shown.push_str(rest);
    shown
}

/// Returns whether a message follows the name, and no value: `failed to get token: authorization code expired`. Only for tokens,
/// which are no words; a password may be one.
fn is_sentence(name: &str, behind: &str, value: &str, length: usize) -> bool {
    let (word, rest) = value.split_at(length);
    name.to_ascii_lowercase().contains("token")
        && behind.starts_with(": ")
        && word.trim_end_matches(':').chars().all(|char| char.is_ascii_alphabetic())
        && rest.trim_start().starts_with(|char: char| char.is_ascii_alphabetic())
}

/// Hides words that look like a token or a key.
fn by_looks(line: &str) -> String {
    let is_break = |char: char| char.is_whitespace() || "\"'`,;()[]{}<>=".contains(char);
    let mut shown = String::with_capacity(line.len());
    let mut rest = line;
    loop {
        let end = rest.find(is_break).unwrap_or(rest.len());
        let word = &rest[..end];
        shown.push_str(if looks_secret(word) { HIDDEN } else { word });
        rest = &rest[end..];
        match rest.chars().next() {
            Some(char) if word.contains("://") && char == '=' => {
                // Keeps the rest of a URL.
                let end = rest.find(|char: char| char.is_whitespace() || "\"'`<>".contains(char)).unwrap_or(rest.len());
                shown.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            Some(char) => {
                shown.push(char);
                rest = &rest[char.len_utf8()..];
            }
            None => return shown,
        }
    }
}

fn looks_secret(word: &str) -> bool {
    if word.contains("://") || word.starts_with(['/', '~', '.']) {
        return false;
    }
    let has_beginning = BEGINNINGS.iter().any(|beginning| word.starts_with(beginning)) && word.len() >= 16;
    let is_mixed = word.contains(|char: char| char.is_ascii_digit())
        && word.contains(|char: char| char.is_ascii_alphabetic())
        && word.chars().all(|char| char.is_ascii_alphanumeric() || "+/_-.~".contains(char));
    has_beginning || (word.len() >= LONG_WORD && is_mixed && !is_uuid(word))
}

/// Returns whether a word is a UUID, as in trace ids of identity providers.
fn is_uuid(word: &str) -> bool {
    let lengths: Vec<usize> = word.trim_end_matches('.').split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> String {
        clean(line.as_bytes(), &Secrets::default()).unwrap_or_default()
    }

    #[test]
    fn escape_sequences_leave_nothing_behind() {
        assert_eq!(
            shown("\x1b[1;31mgo to\x1b[0m https://a.test/device \x1b]8;;x\x07ABCD\x1b]8;;\x1b\\"),
            "go to https://a.test/device ABCD"
        );
        assert_eq!(shown("\u{9b}2Ka\x1b(Bb\x07\x08c\td\u{202e}e"), "abc de");
        assert_eq!(shown("\x1b[31"), "");
        assert_eq!(shown("\x1b"), "");
        assert_eq!(clean(b"caf\xc3\xa9 \xff", &Secrets::default()).unwrap(), "caf\u{e9} \u{fffd}");
        assert_eq!(shown(&"ab ".repeat(1_000)).len(), LONGEST);
    }

    #[test]
    fn people_can_read_what_they_have_to_do() {
        for line in [
            "go to https://example.com/device and enter ABCD",
            "To sign in, use a web browser to open the page https://microsoft.com/devicelogin and enter the code EJQ7N4W2X.",
            "https://device.sso.eu-west-1.amazonaws.com/?user_code=ABCD-EFGH",
            "open https://a.test/auth?client_id=0oa1&state=0123456789abcdef0123456789abcdef&code_challenge=AbC0123456789-_0123456789xyz0123456",
            "error: token expired, run aws sso login",
            "token: none",
            "error: get-token: authentication error: timed out",
            "problem refreshing your current auth tokens: Reauthentication failed. cannot prompt",
            "failed to get token: authorization code expired",
            "Correlation ID: 0fa4b8c2-1b2c-4d5e-8f90-123456789abc",
            "cannot read /home/ana/.cache/kubelogin/0123456789abcdef0123456789abcdef01234567",
        ] {
            assert_eq!(shown(line), line);
        }
    }

    #[test]
    fn secrets_are_hidden_by_their_names_and_their_looks() {
        for (line, wanted) in [
            ("debug: token=abcdef123", "debug: token=***"),
            ("{\"token\": \"abcdef123\", \"x\": 1}", "{\"token\": \"***\", \"x\": 1}"),
            ("{'status':{'token':'abcdef123'}}", "{'status':{'token':'***'}}"),
            ("Authorization: Bearer abcdef123", "Authorization: Bearer ***"),
            ("header Bearer abcdef123!", "header Bearer ***"),
            ("+ login --client-secret s3cr3tvalue --x", "+ login --client-secret *** --x"),
            ("DB_PASSWORD=hunter22 next", "DB_PASSWORD=*** next"),
            ("password: summertime next", "password: *** next"),
            ("token: abcdef123 next", "token: *** next"),
            ("got eyJhbGciOi.J9eyJz.dWIi", "got ***"),
            ("k8s-aws-v1.aHR0cHM6Ly9", "***"),
            ("https://a.test/cb?access_token=abcdef123&x=1", "https://a.test/cb?access_token=***&x=1"),
            ("0123456789abcdef0123456789abcdef", "***"),
            ("x=0123456789abcdef0123456789abcdef,", "x=***,"),
        ] {
            assert_eq!(shown(line), wanted, "{line}");
        }
        let mut secrets = Secrets::default();
        secrets.add("plain words\nshort\n");
        assert_eq!(clean(b"my plain words are short", &secrets).unwrap(), "my *** are short");
    }
}
