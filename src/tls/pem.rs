//! PEM (RFC 7468), parsed like Go does: blocks that do not decode are skipped.

use base64::{Engine, engine::general_purpose::STANDARD};

/// A block of a PEM file.
pub struct Block {
    /// Such as `CERTIFICATE` or `EC PRIVATE KEY`.
    pub label: String,
    pub content: Vec<u8>,
    pub has_headers: bool,
}

/// Returns the blocks in order. As in Go, they begin and end at the beginning of a line.
pub fn blocks(text: &[u8]) -> Vec<Block> {
    let text = String::from_utf8_lossy(text);
    let mut found = Vec::new();
    let mut open: Option<(&str, String, bool)> = None;
    for line in text.lines().map(str::trim_end) {
        if let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) {
            open = Some((label, String::new(), false));
        } else if let Some(label) = line.strip_prefix("-----END ").and_then(|rest| rest.strip_suffix("-----")) {
            if let Some((opened, content, has_headers)) = open.take().filter(|(opened, ..)| *opened == label)
                && let Ok(content) = STANDARD.decode(content)
            {
                found.push(Block { label: opened.to_owned(), content, has_headers });
            }
        } else if let Some((_, content, has_headers)) = &mut open {
            // Nobody here can decrypt a block, and with this header its content is not base64.
            if content.is_empty() && line.contains(':') && !line.starts_with("Proc-Type:") {
                *has_headers = true;
            } else {
                content.extend(line.chars().filter(|char| !char.is_whitespace()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_do_not_decode_are_passed_over() {
        let text = "subject: CN = a\n-----BEGIN CERTIFICATE-----\r\nQUJD\r\nREVG\r\n-----END CERTIFICATE-----\n\
                    -----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n\
                    -----BEGIN CERTIFICATE-----\nQUJD\n-----BEGIN EC PARAMETERS-----\nBg==\n-----END EC PARAMETERS-----\n\
                    -----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nQUJD\n-----END RSA PRIVATE KEY-----\n\
                    -----BEGIN X-----\nQUJD\n-----END Y-----\n  -----BEGIN A-----\nQQ==\n-----END A-----\n\
                    -----BEGIN PRIVATE KEY-----\nx: y\nz: 1\n\nQQ==\n-----END PRIVATE KEY-----";
        let found = blocks(text.as_bytes());
        let found: Vec<_> = found.iter().map(|block| (&*block.label, block.content.len(), block.has_headers)).collect();
        assert_eq!(found, [("CERTIFICATE", 6, false), ("EC PARAMETERS", 1, false), ("PRIVATE KEY", 1, true)]);
        assert!(blocks(b"-----BEGIN -----\xff").is_empty());
    }
}
