use super::*;

#[test]
fn the_end_of_each_frame_is_known() {
    let mut bytes = BytesMut::new();
    let mut ends = vec![0];
    for (length, mask) in [(0, None), (5, None), (126, Some([1, 2, 3, 4])), (70_000, None)] {
        put_frame(&mut bytes, Opcode::Binary, &vec![7; length], mask);
        ends.push(bytes.len());
    }
    for step in [1, 3, 1000, 100_000] {
        let mut boundary = Boundary::default();
        let mut at = 0;
        for piece in bytes.chunks(step) {
            boundary.pass(piece);
            at += piece.len();
            assert_eq!(boundary.left() == 0, ends.contains(&at), "byte {at}");
            assert!(boundary.left() <= (bytes.len() - at) as u64);
        }
    }
}

#[test]
fn a_close_frame_counts_once_it_is_whole() {
    for (payload, mask) in
        [(&b""[..], None), (b"\x03\xe8", None), (b"", Some([9, 8, 7, 6])), (b"\x03\xe8bye", Some([1, 2, 3, 4]))]
    {
        let mut bytes = BytesMut::new();
        // Payloads that look like Close frames.
        put_frame(&mut bytes, Opcode::Binary, &[0x88, 0, 0x88, 0], mask);
        put_frame(&mut bytes, Opcode::Ping, &[0x88, 0], mask);
        put_frame(&mut bytes, Opcode::Close, payload, mask);
        let mut boundary = Boundary::default();
        for (at, byte) in bytes.iter().enumerate() {
            assert!(!boundary.has_closed(), "byte {at} of {}", bytes.len());
            boundary.pass(&[*byte]);
        }
        assert!(boundary.has_closed());
        boundary.pass(b"\x81\x01!");
        assert!(!boundary.has_closed(), "it goes on");
        boundary.pass(&bytes);
        assert!(!boundary.has_closed(), "who goes on once may go on again");
    }
}

fn messages(mask: Option<[u8; 4]>) -> BytesMut {
    let mut out = BytesMut::new();
    put_frame(&mut out, Opcode::Binary, b"hello", mask);
    put_frame(&mut out, Opcode::Ping, b"?", mask);
    put_frame(&mut out, Opcode::Binary, &[7; 300], mask);
    put_frame(&mut out, Opcode::Binary, &[8; 70_000], mask);
    put_frame(&mut out, Opcode::Close, &1000u16.to_be_bytes(), mask);
    out
}

fn read(parser: &mut Parser, input: &mut BytesMut, whole: &mut Vec<Event>) {
    while let Some(event) = parser.next(input).unwrap() {
        match (whole.last_mut(), event) {
            (Some(Event::Data { payload, last }), Event::Data { payload: more, last: end }) if !*last => {
                *payload = [&payload[..], &more[..]].concat().into();
                *last = end;
            }
            (_, event) => whole.push(event),
        }
    }
}

fn wanted() -> Vec<Event> {
    let data = |payload: &[u8]| Event::Data { payload: Bytes::copy_from_slice(payload), last: true };
    vec![
        data(b"hello"),
        Event::Ping(Bytes::from_static(b"?")),
        data(&[7; 300]),
        data(&[8; 70_000]),
        Event::Close(Some(1000)),
    ]
}

#[test]
fn frames_are_the_same_however_the_bytes_are_split() {
    for (role, mask) in [(Role::Client, None), (Role::Server, Some([1, 2, 3, 4]))] {
        let bytes = messages(mask);
        for cut in (0..500).chain(bytes.len() - 10..bytes.len()) {
            let (mut parser, mut input, mut found) = (Parser::new(role), BytesMut::from(&bytes[..cut]), Vec::new());
            read(&mut parser, &mut input, &mut found);
            input.extend_from_slice(&bytes[cut..]);
            read(&mut parser, &mut input, &mut found);
            assert_eq!(found, wanted(), "{role:?}, cut at {cut}");
        }
        let (mut parser, mut input, mut found) = (Parser::new(role), BytesMut::new(), Vec::new());
        for byte in bytes {
            input.extend_from_slice(&[byte]);
            read(&mut parser, &mut input, &mut found);
        }
        assert_eq!(found, wanted());
    }
}

#[test]
fn the_examples_of_the_rfc_hold() {
    // Section 1.3.
    assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    // Section 5.7: a masked text message, and an unmasked one in two fragments with a ping in between.
    let mut out = BytesMut::new();
    put_frame(&mut out, Opcode::Text, b"Hello", Some([0x37, 0xfa, 0x21, 0x3d]));
    assert_eq!(&out[..], [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
    let mut input = BytesMut::from(&b"\x01\x03Hel\x89\x00\x80\x02lo"[..]);
    let (mut parser, mut found) = (Parser::new(Role::Client), Vec::new());
    while let Some(event) = parser.next(&mut input).unwrap() {
        found.push(event);
    }
    let data = |payload: &'static [u8], last| Event::Data { payload: Bytes::from_static(payload), last };
    assert_eq!(found, [data(b"Hel", false), Event::Ping(Bytes::new()), data(b"lo", true)]);
}

#[test]
fn what_the_rfc_forbids_is_an_error() {
    let next = |role, bytes: &[u8]| Parser::new(role).next(&mut BytesMut::from(bytes));
    assert_eq!(next(Role::Client, b"\xc2\x00"), Err(WebSocketError::Reserved(0xc2)));
    assert_eq!(next(Role::Client, b"\x83\x00"), Err(WebSocketError::Reserved(0x83)));
    assert_eq!(next(Role::Client, b"\x82\x80\0\0\0\0"), Err(WebSocketError::Mask));
    assert_eq!(next(Role::Server, b"\x82\x00"), Err(WebSocketError::Mask));
    assert_eq!(next(Role::Client, b"\x09\x00"), Err(WebSocketError::Control));
    assert_eq!(next(Role::Client, b"\x89\x7e\x00\xff"), Err(WebSocketError::Control));
    assert_eq!(next(Role::Client, b"\x80\x01a"), Err(WebSocketError::Fragmentation));
    assert!(matches!(next(Role::Client, b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff"), Err(WebSocketError::TooLong(_))));
}
