use std::net::{IpAddr, Ipv4Addr};

use adit::wire::dns::answer;

/// Panics where an answer is none to its question, or is longer than one may be.
pub fn check(data: &[u8]) {
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let Some(reply) = answer(data, |name| name.ends_with("localhost").then(|| vec![address])) else { return };
    assert!(reply.len() >= 12 && reply.len() <= data.len() + 16);
    assert_eq!((&reply[..2], reply[2] & 0x80), (&data[..2], 0x80));
    // An answer is no question: two servers do not talk for ever.
    assert_eq!(answer(&reply, |_| None), None);
}
