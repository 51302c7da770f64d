//! The framing of HTTP/1 requests, parsed strictly (RFC 9112): where the headers end, whether there is exactly one way
//! to read them, and where the body ends.
//!
//! Refuses requests that two parsers could read differently, before a lenient parser sees them.

/// Maximum length of a head (request line and headers), with its empty line.
pub const LONGEST_HEAD: usize = 256 * 1024;

/// Maximum length of the request target. The `http` crate's URI takes no more.
pub const LONGEST_TARGET: usize = 64 * 1024 - 2;

/// Maximum number of header lines, of a request or an answer. Node.js has the same, and many other servers have none: how
/// many headers are too many is for the server to say. hyper allocates 64 bytes for each of them while it parses a head, which
/// takes 2.6 us in all; with 8,000 it would be 220 us, because the allocator maps and unmaps the memory each time.
pub const MOST_HEADERS: usize = 2_000;

/// Maximum number of empty lines before a request line. Old clients send one after a body (RFC 9112, section 2.2).
pub const MOST_EMPTY_LINES: usize = 4;

/// Maximum length of a chunk-size line with its extensions, and of a trailer section.
const LONGEST_CHUNK_LINE: usize = 4 * 1024;
const LONGEST_TRAILERS: usize = 16 * 1024;

/// How to find the end of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// This many bytes. 0: no body.
    Length(u64),
    Chunked,
}

/// Fields of a request's head that decide how to read the bytes after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub framing: Framing,
    /// It has an Upgrade header: after the answer, the connection may switch to another protocol.
    pub has_upgrade: bool,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The client would not understand an HTTP answer either.
    #[error("the first line is none of HTTP")]
    NotHttp,
    #[error("the request line is not <method> <target> HTTP/1.1")]
    RequestLine,
    #[error("the version is not HTTP/1.0 or HTTP/1.1")]
    Version,
    #[error("the target has characters that must be percent-encoded, or a fragment")]
    Target,
    #[error("the target is longer than {LONGEST_TARGET} bytes")]
    TargetTooLong,
    #[error("CONNECT works only over HTTP/1.1 without TLS")]
    Connect,
    #[error("a line ends with a bare LF or has a bare CR")]
    LineEnd,
    #[error("a header is folded over two lines")]
    Fold,
    #[error("a header's name is empty, or has spaces or other characters that no name has")]
    HeaderName,
    #[error("a header's value has control characters")]
    HeaderValue,
    #[error("there is no Host header")]
    NoHost,
    #[error("there are two Host headers")]
    TwoHosts,
    #[error("the Host header is not a host with or without a port")]
    Host,
    #[error("Content-Length is given twice, or is not a number")]
    Length,
    #[error("Transfer-Encoding is something else than chunked, once")]
    Coding,
    #[error("both Content-Length and Transfer-Encoding are given")]
    LengthAndCoding,
    #[error("the headers are longer than {} KiB, or more than {MOST_HEADERS}", LONGEST_HEAD / 1024)]
    TooLarge,
    #[error("there are more than {MOST_EMPTY_LINES} empty lines before the request line")]
    EmptyLines,
}

/// Returns the number of empty lines at the start of `bytes`. Each has 2 bytes, and a server ignores them before a
/// request line (RFC 9112, section 2.2).
pub fn empty_lines(bytes: &[u8]) -> usize {
    bytes.chunks(2).take_while(|pair| *pair == b"\r\n").count()
}

/// Returns the length of the head at the start of `bytes`, with its empty line. `None`: it is incomplete.
///
/// `searched`: number of bytes that an earlier call has searched.
///
/// # Errors
/// The head is too long, or a line has a wrong end.
pub fn head_end(bytes: &[u8], searched: usize) -> Result<Option<usize>, Refusal> {
    // The end may span the searched and the new bytes.
    let from = searched.saturating_sub(3).min(bytes.len());
    let end = bytes[from..].windows(4).position(|window| window == b"\r\n\r\n").map(|at| from + at + 4);
    match end {
        Some(end) if end <= LONGEST_HEAD => Ok(Some(end)),
        Some(_) => Err(Refusal::TooLarge),
        None if bytes.len() > LONGEST_HEAD => Err(Refusal::TooLarge),
        // A strict parser would never find the end of a head that uses bare LFs.
        None if bytes[from..].windows(2).any(|window| window == b"\n\n" || window == b"\n\r") && has_bare_lf(bytes) => {
            Err(Refusal::LineEnd)
        }
        None => Ok(None),
    }
}

fn has_bare_lf(bytes: &[u8]) -> bool {
    bytes.iter().enumerate().any(|(at, byte)| *byte == b'\n' && (at == 0 || bytes[at - 1] != b'\r'))
}

/// Checks a complete head, from its request line to its empty line.
///
/// # Errors
/// There is no way to read it, or more than one.
pub fn check_head(head: &[u8]) -> Result<Head, Refusal> {
    let mut rest = head;
    let mut line = next_line(&mut rest)?;
    let is_http10 = request_line(line)?;
    let (mut length, mut is_chunked, mut hosts, mut has_upgrade, mut count) = (None, false, 0, false, 0);
    loop {
        line = next_line(&mut rest)?;
        if line.is_empty() {
            break;
        }
        count += 1;
        if count > MOST_HEADERS {
            return Err(Refusal::TooLarge);
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(Refusal::Fold);
        }
        let colon = line.iter().position(|byte| !is_token(*byte)).filter(|at| *at > 0 && line[*at] == b':');
        let Some(colon) = colon else { return Err(Refusal::HeaderName) };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
            return Err(Refusal::HeaderValue);
        }
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                hosts += 1;
                if value.is_empty() {
                    return Err(Refusal::NoHost);
                }
                if !value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+;=".contains(byte)) {
                    return Err(Refusal::Host);
                }
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => has_upgrade = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                let parsed = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).filter(|_| is_number);
                if length.is_some() || parsed.is_none() {
                    return Err(Refusal::Length);
                }
                length = parsed;
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                // HTTP/1.0 does not define it, and other parsers on the way may not know it.
                if is_chunked || is_http10 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::Coding);
                }
                is_chunked = true;
            }
            _ => {}
        }
    }
    match (hosts, is_http10) {
        (0, false) => return Err(Refusal::NoHost),
        (2.., _) => return Err(Refusal::TwoHosts),
        _ => {}
    }
    let framing = match (length, is_chunked) {
        (Some(_), true) => return Err(Refusal::LengthAndCoding),
        (None, true) => Framing::Chunked,
        (length, false) => Framing::Length(length.unwrap_or(0)),
    };
    Ok(Head { framing, has_upgrade })
}

/// Takes a line that ends with CRLF and contains no other CR or LF.
fn next_line<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Refusal> {
    let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).ok_or(Refusal::LineEnd)?;
    if rest[end..].first_chunk() != Some(b"\r\n") {
        return Err(Refusal::LineEnd);
    }
    let line = &rest[..end];
    *rest = &rest[end + 2..];
    Ok(line)
}

/// Returns whether the version is HTTP/1.0.
fn request_line(line: &[u8]) -> Result<bool, Refusal> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::RequestLine);
    };
    if !version.get(..5).is_some_and(|start| start.eq_ignore_ascii_case(b"HTTP/")) {
        return Err(Refusal::NotHttp);
    }
    if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) {
        return Err(Refusal::RequestLine);
    }
    if method == b"CONNECT" {
        return Err(Refusal::Connect);
    }
    let is_version = |version: &[u8]| matches!(version, [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']);
    let is_http10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        version if is_version(version) => return Err(Refusal::Version),
        _ => return Err(Refusal::RequestLine),
    };
    let is_form = match target {
        [b'/', ..] => true,
        b"*" => method == b"OPTIONS",
        // absolute-form (section 3.2.2).
        _ => {
            target.get(..7).is_some_and(|start| start.eq_ignore_ascii_case(b"http://"))
                || target.get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"https://"))
        }
    };
    if !is_form || target.iter().any(|byte| matches!(*byte, 0..=b' ' | b'#' | 0x7f)) {
        return Err(Refusal::Target);
    }
    if target.len() > LONGEST_TARGET {
        return Err(Refusal::TargetTooLong);
    }
    Ok(is_http10)
}

/// Percent-encodes characters that are invalid in a target, but that clients send: `"`, `<`, `>` and non-ASCII bytes, and in
/// the path `` ` ``, `{` and `}`. Browsers encode the same ones (WHATWG URL, path and query percent-encode sets). `None`:
/// nothing to encode.
///
/// `head`: a checked head.
///
/// # Errors
/// The host of an absolute target has such a character, or the encoded target is too long.
pub fn encode_target(head: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
    let line = head.iter().position(|byte| *byte == b'\r').unwrap_or(head.len());
    let Some(start) = head[..line].iter().position(|byte| *byte == b' ').map(|at| at + 1) else { return Ok(None) };
    let end = head[start..line].iter().position(|byte| *byte == b' ').map_or(line, |at| start + at);
    let target = &head[start..end];
    if !target.iter().any(|byte| is_odd(*byte)) {
        return Ok(None);
    }
    let authority = match target.windows(3).position(|window| window == b"://").filter(|_| target[0] != b'/') {
        Some(at) => at + 3,
        None => 0,
    };
    let path = target[authority..].iter().position(|byte| matches!(byte, b'/' | b'?')).map(|at| authority + at);
    let path = path.unwrap_or(target.len());
    if target[..path].iter().any(|byte| is_odd(*byte)) {
        return Err(Refusal::Target);
    }
    let mut encoded = head[..start + path].to_vec();
    let mut is_query = false;
    for byte in &target[path..] {
        is_query |= *byte == b'?';
        if is_odd(*byte) && !(is_query && matches!(byte, b'`' | b'{' | b'}')) {
            encoded.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else {
            encoded.push(*byte);
        }
    }
    if encoded.len() - start > LONGEST_TARGET {
        return Err(Refusal::TargetTooLong);
    }
    encoded.extend_from_slice(&head[end..]);
    Ok(Some(encoded))
}

fn is_odd(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'`' | b'{' | b'}' | 0x80..)
}

/// The framing of a piece of a chunked body (RFC 9112, section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A size line, its data, and the CRLF after it: this many bytes in total.
    Chunk(u64),
    /// The last chunk, the trailers, and the empty line: this many bytes in total.
    Last(usize),
    NeedMore,
}

/// Returns the piece at the start of `bytes`.
///
/// # Errors
/// It is not a chunk, or its framing is too long.
pub fn chunk(bytes: &[u8]) -> Result<Piece, &'static str> {
    let Some((size, line)) = chunk_line(bytes)? else { return Ok(Piece::NeedMore) };
    if size > 0 {
        return size.checked_add(line as u64 + 2).map(Piece::Chunk).ok_or("a chunk is larger than any number can say");
    }
    let mut rest = &bytes[line..];
    loop {
        let taken = bytes.len() - rest.len();
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            return if taken + rest.len() > LONGEST_TRAILERS {
                Err("the trailers are too long")
            } else {
                Ok(Piece::NeedMore)
            };
        };
        let Some(field) = rest[..end].strip_suffix(b"\r") else { return Err("a trailer ends with a bare LF") };
        if field.is_empty() {
            return Ok(Piece::Last(taken + end + 1));
        }
        let colon = field.iter().position(|byte| !is_token(*byte)).unwrap_or(0);
        if colon == 0 || field[colon] != b':' || field[colon..].iter().any(|byte| *byte < b' ' && *byte != b'\t') {
            return Err("a trailer is malformed");
        }
        rest = &rest[end + 1..];
        if bytes.len() - rest.len() > LONGEST_TRAILERS {
            return Err("the trailers are too long");
        }
    }
}

/// Returns the size of the chunk, and the length of its size line. `None`: the line is incomplete.
fn chunk_line(bytes: &[u8]) -> Result<Option<(u64, usize)>, &'static str> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() > LONGEST_CHUNK_LINE { Err("a chunk's size line is too long") } else { Ok(None) };
    };
    if end > LONGEST_CHUNK_LINE {
        return Err("a chunk's size line is too long");
    }
    let Some(line) = bytes[..end].strip_suffix(b"\r") else { return Err("a chunk's size line ends with a bare LF") };
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let extension = &line[digits..];
    let is_extension = extension.trim_ascii_start().first().is_none_or(|byte| *byte == b';');
    // Some old senders pad the size with spaces, but attackers also use them to hide a request.
    let is_clean = extension.iter().all(|byte| *byte >= b' ' && *byte != 0x7f || *byte == b'\t');
    if !is_extension || !is_clean || (!extension.is_empty() && extension.trim_ascii().is_empty()) {
        return Err("a chunk's size line has something else than a size and extensions");
    }
    let size = std::str::from_utf8(&line[..digits]).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
    match size {
        Some(size) if digits <= 16 => Ok(Some((size, end + 1))),
        _ => Err("a chunk's size is not a number"),
    }
}

/// Returns whether a byte is a `tchar` (RFC 9110, section 5.6.2).
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str) -> Result<Head, Refusal> {
        let bytes = head.as_bytes();
        for end in 0..=bytes.len() {
            if let Some(length) = head_end(&bytes[..end], end.saturating_sub(1))? {
                return check_head(&bytes[..length]);
            }
        }
        panic!("{head:?} has no end");
    }

    #[test]
    fn plain_requests_are_taken() {
        let length = |length| Ok(Head { framing: Framing::Length(length), has_upgrade: false });
        assert_eq!(check("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), length(0));
        assert_eq!(check("GET /x?a=%20&b=c HTTP/1.0\r\n\r\n"), length(0));
        assert_eq!(check("OPTIONS * HTTP/1.1\r\nhost:a.localhost:8989\r\nX-Empty:\r\n\r\n"), length(0));
        assert_eq!(check("POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: \t 007 \r\n\r\n1234567"), length(7));
        assert_eq!(
            check("PATCH / HTTP/1.1\r\nHost: [::1]:80\r\nTransfer-Encoding: Chunked\r\nUpgrade: x\r\n\r\n0\r\n\r\n"),
            Ok(Head { framing: Framing::Chunked, has_upgrade: true })
        );
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let with = |lines: &str| check(&format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n"));
        for (lines, refusal) in [
            ("Content-Length: 1\r\nContent-Length: 2", Refusal::Length),
            ("Content-Length: 1\r\nContent-Length: 1", Refusal::Length),
            ("Content-Length: 1, 1", Refusal::Length),
            ("Content-Length: +1", Refusal::Length),
            ("Content-Length: 0x1", Refusal::Length),
            ("Content-Length: ", Refusal::Length),
            ("Content-Length: 18446744073709551616", Refusal::Length),
            ("Transfer-Encoding: chunked\r\nContent-Length: 1", Refusal::LengthAndCoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", Refusal::Coding),
            ("Transfer-Encoding: gzip, chunked", Refusal::Coding),
            ("Transfer-Encoding: identity", Refusal::Coding),
            ("Transfer-Encoding:", Refusal::Coding),
            ("Transfer-Encoding: chunked\x0b", Refusal::HeaderValue),
            ("Transfer-Encoding : chunked", Refusal::HeaderName),
            ("Transfer\tEncoding: chunked", Refusal::HeaderName),
            (": x", Refusal::HeaderName),
            ("no colon", Refusal::HeaderName),
            ("X: a\r\n b", Refusal::Fold),
            ("X: a\nY: b", Refusal::LineEnd),
            ("X: a\rY: b", Refusal::LineEnd),
            ("X: a\0b", Refusal::HeaderValue),
            ("Host: b", Refusal::TwoHosts),
        ] {
            assert_eq!(with(lines), Err(refusal), "{lines:?}");
        }
        for (head, refusal) in [
            ("GET / HTTP/1.1\r\n\r\n", Refusal::NoHost),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Refusal::Host),
            ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", Refusal::Host),
            ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", Refusal::Host),
            ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
            ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
            ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Refusal::RequestLine),
            ("INVALID CONNECTION PREFACE\r\n\r\n", Refusal::NotHttp),
            ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Refusal::Version),
            ("GET / http/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
            ("GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
            ("GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
            ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
            ("GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
            ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Connect),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::Coding),
            ("GET / HTTP/1.1\nHost: a\n\n", Refusal::LineEnd),
            (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        ] {
            assert_eq!(check(head), Err(refusal), "{head:?}");
        }
        let many = "X: y\r\n".repeat(MOST_HEADERS);
        assert_eq!(with(many.trim_end()), Err(Refusal::TooLarge));
        assert_eq!(head_end(&vec![b'a'; LONGEST_HEAD + 1], 0), Err(Refusal::TooLarge));
    }

    #[test]
    fn odd_characters_of_a_target_are_encoded() {
        for (target, encoded) in [
            ("/a", None),
            ("/a?x=[|y|]^\\{b}`", None),
            (r#"/q?query=up{job="x"}"#, Some("/q?query=up{job=%22x%22}")),
            ("/{a}/`b`/<c>?<d>", Some("/%7Ba%7D/%60b%60/%3Cc%3E?%3Cd%3E")),
            (r#"http://a?"b""#, Some("http://a?%22b%22")),
            (r#"/?u=http://"b""#, Some("/?u=http://%22b%22")),
            ("/\u{fc}?\u{1f600}", Some("/%C3%BC?%F0%9F%98%80")),
        ] {
            let head = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: {{a}}\r\nX: \"<>\r\n\r\n").into_bytes();
            let found = encode_target(&head(target)).unwrap();
            let wanted = encoded.map(head);
            // Other characters stay as they are.
            assert_eq!(
                found.as_deref().unwrap_or(&head(target)),
                wanted.as_deref().unwrap_or(&head(target)),
                "{target}"
            );
        }
        for head in [&b"GET http://a\"b/ HTTP/1.1\r\n\r\n"[..], b"GET http://a\xfc/ HTTP/1.1\r\n\r\n"] {
            assert_eq!(encode_target(head), Err(Refusal::Target));
        }
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "\"".repeat(30_000));
        assert_eq!(encode_target(long.as_bytes()), Err(Refusal::TargetTooLong));
    }

    #[test]
    fn empty_lines_are_counted_and_half_ones_are_not() {
        for (bytes, count) in
            [(&b""[..], 0), (b"\r", 0), (b"\r\n", 1), (b"\r\n\r", 1), (b"\r\n\r\nGET", 2), (b"\n\r\n", 0), (b"\rG", 0)]
        {
            assert_eq!(empty_lines(bytes), count, "{bytes:?}");
        }
    }

    #[test]
    fn chunks_are_found_at_each_prefix() {
        for (bytes, piece) in [
            (&b"5\r\n"[..], Piece::Chunk(10)),
            (b"00Fa;name=\"v\"\r\n", Piece::Chunk(0xfa + 15 + 2)),
            (b"0\r\n\r\n", Piece::Last(5)),
            (b"0\r\nChecksum: 1\r\n\r\n", Piece::Last(18)),
        ] {
            for end in 0..bytes.len() {
                assert_eq!(chunk(&bytes[..end]), Ok(Piece::NeedMore), "{bytes:?} to {end}");
            }
            assert_eq!(chunk(bytes), Ok(piece), "{bytes:?}");
        }
        for bytes in [
            &b"5\n"[..],
            b"\r\n",
            b"-5\r\n",
            b"0x5\r\n",
            b"5 \r\n",
            b"5\x0b;\r\n",
            b"11111111111111111\r\n",
            b"0\r\nbad trailer\r\n\r\n",
            b"0\r\nX: y\n\r\n",
        ] {
            assert!(chunk(bytes).is_err(), "{bytes:?}");
        }
    }
}
