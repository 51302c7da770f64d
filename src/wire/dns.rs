//! DNS queries (RFC 1035, section 4.1) for the addresses of names, and their answers.
//!
//! ```text
//! header    id(2) flags(2) questions(2) answers(2) authorities(2) additional(2)
//! flags     QR opcode(4) AA TC RD RA Z(3) RCODE(4)
//! question  name type(2) class(2); a name is labels, each after its length, and ends with a length of 0
//! answer    name type(2) class(2) TTL(4) length(2) address; the name is a pointer to the name of the question
//! ```

use std::net::IpAddr;

/// Maximum length of a message without extensions (section 4.2.1). All addresses of a name fit into such an answer.
pub const LONGEST: usize = 512;

/// Maximum length of a name with its length bytes (section 2.3.4).
const LONGEST_NAME: usize = 255;
const LONGEST_LABEL: usize = 63;

const HEADER: usize = 12;

/// How long clients may cache an answer, in seconds: the route of the name may be gone after the next reload.
const TTL: u32 = 5;

const A: u16 = 1;
const AAAA: u16 = 28;
const ANY: u16 = 255;
const INTERNET: u16 = 1;

const FORMAT_ERROR: u8 = 1;
const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;

/// Returns whether these first bytes of a client may be a DNS query over TCP: a length below 256, then the query. No other
/// protocol of a listener begins with a zero and something else.
pub fn may_be_framed(bytes: &[u8]) -> bool {
    matches!(bytes, [0, length, ..] if usize::from(*length) > HEADER)
}

/// Returns the answer to a message. `None`: the message is not a query, and gets no answer.
///
/// `addresses`: returns the addresses of a name in lower case and without a final dot. If it returns `None`, the name
/// is not adit's, and adit refuses the query, so that the client asks another server.
pub fn answer(message: &[u8], addresses: impl Fn(&str) -> Option<Vec<IpAddr>>) -> Option<Vec<u8>> {
    let (header, rest) = message.split_at_checked(HEADER)?;
    let is_response = header[2] & 0x80 != 0;
    if is_response {
        return None;
    }
    let is_query = header[2] & 0x78 == 0;
    if !is_query {
        return Some(reply(header, NOT_IMPLEMENTED, &[], &[]));
    }
    let Some((name, end)) = (header[4..6] == [0, 1]).then(|| name(rest)).flatten() else {
        return Some(reply(header, FORMAT_ERROR, &[], &[]));
    };
    let Some(&[kind_high, kind_low, class_high, class_low]) = rest.get(end..end + 4) else {
        return Some(reply(header, FORMAT_ERROR, &[], &[]));
    };
    let question = &rest[..end + 4];
    let (kind, class) = (u16::from_be_bytes([kind_high, kind_low]), u16::from_be_bytes([class_high, class_low]));
    let known = name.and_then(|name| addresses(&name)).filter(|_| matches!(class, INTERNET | ANY));
    let Some(known) = known else { return Some(reply(header, REFUSED, question, &[])) };
    let records: Vec<Vec<u8>> = known.into_iter().filter_map(|address| record(kind, address)).collect();
    Some(reply(header, 0, question, &records))
}

/// Parses a name, and returns it with the position after it. A query has no compression pointers (section 4.1.4),
/// because its name comes first. The name is `None` if it is the root or not a hostname: a label may contain any bytes
/// (RFC 2181, section 11), even a dot.
fn name(bytes: &[u8]) -> Option<(Option<String>, usize)> {
    let (mut name, mut at, mut is_host) = (String::new(), 0, true);
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            let name = Some(name).filter(|name| is_host && !name.is_empty());
            return (at <= LONGEST_NAME).then_some((name, at));
        }
        let label = bytes.get(at..at + length).filter(|_| length <= LONGEST_LABEL)?;
        is_host &= label.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte));
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
        at += length;
    }
}

/// Returns the record of an address. `None`: the query asks for another type.
fn record(kind: u16, address: IpAddr) -> Option<Vec<u8>> {
    let (of, bytes) = match address {
        IpAddr::V4(address) => (A, address.octets().to_vec()),
        IpAddr::V6(address) => (AAAA, address.octets().to_vec()),
    };
    let length = u16::try_from(bytes.len()).ok()?;
    // The question follows the header.
    let pointer = [0xc0, HEADER as u8];
    let head = [&pointer[..], &of.to_be_bytes(), &INTERNET.to_be_bytes(), &TTL.to_be_bytes(), &length.to_be_bytes()];
    (kind == of || kind == ANY).then(|| [head.concat(), bytes].concat())
}

fn reply(header: &[u8], code: u8, question: &[u8], records: &[Vec<u8>]) -> Vec<u8> {
    let is_ours = code == 0;
    // QR and AA are set; opcode and RD come from the query.
    let first = 0x80 | (header[2] & 0x79) | if is_ours { 0x04 } else { 0 };
    let questions = u16::from(!question.is_empty());
    let answers = u16::try_from(records.len()).unwrap_or_default();
    let mut message = vec![header[0], header[1], first, code];
    for count in [questions, answers, 0, 0] {
        message.extend(count.to_be_bytes());
    }
    message.extend(question);
    message.extend(records.iter().flatten());
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a query as glibc 2.36 sends it.
    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut message = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
        for label in name.split('.') {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.as_bytes());
        }
        message.push(0);
        [message, kind.to_be_bytes().to_vec(), INTERNET.to_be_bytes().to_vec()].concat()
    }

    fn local(name: &str) -> Option<Vec<IpAddr>> {
        let is_local = name == "localhost" || name.ends_with(".localhost");
        is_local.then(|| vec![[127, 0, 0, 1].into(), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)])
    }

    /// Returns the code of the answer, its number of records, and the address bytes of the last record.
    fn answered(message: &[u8]) -> Option<(u8, u8, Vec<u8>)> {
        let reply = answer(message, local)?;
        assert_eq!((&reply[..2], reply[2] & 0x80), (&message[..2], 0x80));
        let length = if reply[7] == 0 {
            0
        } else if reply.ends_with(&[127, 0, 0, 1]) {
            4
        } else {
            16
        };
        Some((reply[3], reply[7], reply[reply.len() - length..].to_vec()))
    }

    #[test]
    fn addresses_are_given_by_type() {
        let v6 = std::net::Ipv6Addr::LOCALHOST.octets().to_vec();
        assert_eq!(answered(&question("Web.Shop.localhost", A)), Some((0, 1, vec![127, 0, 0, 1])));
        assert_eq!(answered(&question("web.shop.localhost", AAAA)), Some((0, 1, v6.clone())));
        assert_eq!(answered(&question("localhost", ANY)), Some((0, 2, v6)));
        // The name exists, but has no record of this type.
        assert_eq!(answered(&question("web.shop.localhost", 65)), Some((0, 0, vec![])));
        let reply = answer(&question("a.localhost", A), local).unwrap();
        assert_eq!(&reply[2..4], &[0x85, 0], "an authoritative answer, with the question's wish for recursion");
        assert_eq!(
            &reply[12..],
            &b"\x01a\x09localhost\x00\x00\x01\x00\x01\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\x7f\x00\x00\x01"
                [..]
        );
    }

    #[test]
    fn other_names_are_refused_so_that_others_are_asked() {
        assert_eq!(answered(&question("example.com", A)), Some((REFUSED, 0, vec![])));
        for name in ["*.localhost", "a b.localhost", "b\u{fc}cher.localhost", "a\0.localhost"] {
            assert_eq!(answered(&question(name, A)), Some((REFUSED, 0, vec![])), "{name}");
        }
        let mut dotted = question("a.localhost", A);
        dotted[HEADER] = 11;
        dotted[HEADER + 2] = b'.';
        assert_eq!(answered(&dotted), Some((REFUSED, 0, vec![])), "a label with a dot in it");
        let root = [&question("x", 2)[..HEADER], &[0, 0, 2, 0, 1]].concat();
        assert_eq!(answered(&root), Some((REFUSED, 0, vec![])), "the servers of the root");
        let mut chaos = question("localhost", A);
        *chaos.last_mut().unwrap() = 3;
        assert_eq!(answered(&chaos), Some((REFUSED, 0, vec![])));
    }

    #[test]
    fn what_is_no_question_gets_no_answer_or_an_error() {
        let whole = question("web.shop.localhost", A);
        for end in 0..whole.len() {
            let wanted = (end >= HEADER).then_some((FORMAT_ERROR, 0, vec![]));
            assert_eq!(answered(&whole[..end]), wanted, "{end} bytes");
        }
        let with = |at: usize, byte: u8| {
            let mut message = whole.clone();
            message[at] = byte;
            answered(&message)
        };
        assert_eq!(with(2, 0x81), None, "an answer");
        assert_eq!(with(2, 0x28), Some((NOT_IMPLEMENTED, 0, vec![])), "an update");
        assert_eq!(with(5, 2), Some((FORMAT_ERROR, 0, vec![])), "two questions");
        assert_eq!(with(12, 0xc0), Some((FORMAT_ERROR, 0, vec![])), "a pointer");
        let long = question(&vec!["a".repeat(63); 4].join("."), A);
        assert_eq!(answered(&long), Some((FORMAT_ERROR, 0, vec![])));
        assert_eq!(answered(&question(&format!("{}.localhost", "a".repeat(64)), A)), Some((FORMAT_ERROR, 0, vec![])));
    }
}
