use super::*;

fn all() -> Vec<Frame> {
    let uuid = *b"01234567-89ab-4cde-8f01-23456789abcd";
    let (reason, key) = ("no".to_owned(), "laptop".to_owned());
    vec![
        Frame::Handshake { version: 1, secret: Bytes::from_static(b"hush") },
        Frame::Accept { port: 20_000, host: "relay.example.com".into() },
        Frame::Reject { reason: reason.clone() },
        Frame::Connect { stream: uuid },
        Frame::StreamHandshake { stream: uuid },
        Frame::StreamAccept,
        Frame::StreamReject { reason: reason.clone() },
        Frame::Hello { version: 2, nonce: [1; 32], port: 8080, key },
        Frame::Challenge { nonce: [2; 32] },
        Frame::Proof { proof: [4; 32] },
        Frame::Welcome { session: [5; 16], heartbeat: 15, proof: [3; 32] },
        Frame::Open { tunnel: 7, kind: Kind::Http, port: 0, resume: [6; 16], name: "web".into() },
        Frame::Opened { tunnel: 7, port: 443, resume: [6; 16], address: "https://web.example.com".into() },
        Frame::Refused { tunnel: 7, reason: reason.clone() },
        Frame::Close { tunnel: 7 },
        Frame::Incoming { tunnel: 7, stream: [8; 16], peer: "192.0.2.1:5".into() },
        Frame::Decline { stream: [8; 16], reason: reason.clone() },
        Frame::Claim { session: [5; 16], stream: [8; 16], proof: [9; 32] },
        Frame::Start { tunnel: 7, peer: "192.0.2.1:5".into() },
        Frame::Prepare { stream: [8; 16] },
        Frame::Ping { cookie: 1 },
        Frame::Pong { cookie: u64::MAX },
        Frame::Goodbye { reason },
    ]
}

#[test]
fn every_frame_is_read_as_it_was_written_however_it_is_split() {
    for frame in all() {
        let mut whole = BytesMut::new();
        frame.put(&mut whole);
        for end in 0..whole.len() {
            assert_eq!(Frame::take(&mut BytesMut::from(&whole[..end])), Ok(None), "{frame:?} to {end}");
        }
        whole.extend_from_slice(b"next");
        assert_eq!(Frame::take(&mut whole), Ok(Some(frame)));
        assert_eq!(&whole[..], b"next");
    }
}

#[test]
fn version_1_is_these_bytes() {
    let bytes = |frame: Frame| {
        let mut out = BytesMut::new();
        frame.put(&mut out);
        out.to_vec()
    };
    let uuid = b"01234567-89ab-4cde-8f01-23456789abcd";
    assert_eq!(bytes(Frame::Handshake { version: 1, secret: Bytes::from_static(b"hush") }), b"\x01\0\0\0\x05\x01hush");
    assert_eq!(bytes(Frame::Accept { port: 0x1234, host: "h".into() }), b"\x02\0\0\0\x03\x12\x34h");
    assert_eq!(bytes(Frame::Reject { reason: "no".into() }), b"\x03\0\0\0\x02no");
    assert_eq!(bytes(Frame::Connect { stream: *uuid }), [&b"\x04\0\0\0\x24"[..], uuid].concat());
    assert_eq!(bytes(Frame::StreamHandshake { stream: *uuid }), [&b"\x05\0\0\0\x24"[..], uuid].concat());
    assert_eq!(bytes(Frame::StreamAccept), b"\x06\0\0\0\0");
    assert_eq!(bytes(Frame::StreamReject { reason: "late".into() }), b"\x07\0\0\0\x04late");
}

#[test]
fn what_is_no_frame_is_an_error() {
    let take = |bytes: &[u8]| Frame::take(&mut BytesMut::from(bytes));
    assert_eq!(take(b"GET / HTTP/1.1\r\n"), Err(RelayError::Type(b'G')));
    assert_eq!(take(b"\x01\0\x01\0\x01x"), Err(RelayError::TooLong(65_537)));
    assert_eq!(take(b"\x06\0\0\0\x01x"), Err(RelayError::Payload(6)));
    assert_eq!(take(b"\x05\0\0\0\x03abc"), Err(RelayError::Payload(5)));
    assert_eq!(take(&[&b"\x05\0\0\0\x24"[..], &[b'x'; 36]].concat()), Err(RelayError::Payload(5)));
    assert_eq!(take(b"\x03\0\0\0\x02\xff\xfe"), Err(RelayError::Payload(3)));
    assert_eq!(take(b"\x14\0\0\0\x17\0\0\0\x01\x04\0\0________________"), Err(RelayError::Payload(0x14)));
}
