//! PEM (RFC 7468), parsed like Go does: blocks that do not decode are skipped.

use base64::{Engine, engine::general_purpose::STANDARD};

/// Returns label and content of each block in order, such as `CERTIFICATE` or `EC PRIVATE KEY`.
pub fn blocks(text: &[u8]) -> Vec<(String, Vec<u8>)> {
    let text = String::from_utf8_lossy(text);
    let mut found = Vec::new();
    let mut open: Option<(&str, String)> = None;
    for line in text.lines().map(str::trim) {
        if let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|rest| rest.strip_suffix("-----")) {
            open = Some((label, String::new()));
        } else if let Some(label) = line.strip_prefix("-----END ").and_then(|rest| rest.strip_suffix("-----")) {
            // The headers of an encrypted key contain a colon, so the block is not valid base64.
            if let Some((opened, content)) = open.take().filter(|(opened, _)| *opened == label)
                && let Ok(content) = STANDARD.decode(content)
            {
                found.push((opened.to_owned(), content));
            }
        } else if let Some((_, content)) = &mut open {
            content.extend(line.chars().filter(|char| !char.is_whitespace()));
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
                    -----BEGIN X-----\nQUJD\n-----END Y-----\n  -----BEGIN PRIVATE KEY-----\nQQ==\n-----END PRIVATE KEY-----";
        let labels: Vec<_> =
            blocks(text.as_bytes()).into_iter().map(|(label, content)| (label, content.len())).collect();
        let wanted = [("CERTIFICATE", 6), ("EC PARAMETERS", 1), ("PRIVATE KEY", 1)];
        assert_eq!(labels, wanted.map(|(label, length)| (label.to_owned(), length)));
        assert!(blocks(b"-----BEGIN -----\xff").is_empty());
    }
}
