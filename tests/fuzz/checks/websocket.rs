use adit::wire::websocket::{Event, Parser, Role};
use bytes::BytesMut;

/// Panics where `data` breaks what the WebSocket parser promises: the same events, however the bytes are split.
pub fn check(data: &[u8]) {
    for role in [Role::Client, Role::Server] {
        let whole = events(role, &[data]);
        for cut in [1, 2, 3, data.len() / 2] {
            if let Some((first, second)) = data.split_at_checked(cut) {
                assert_eq!(events(role, &[first, second]), whole, "{role:?}, cut at {cut}");
            }
        }
    }
}

fn events(role: Role, pieces: &[&[u8]]) -> Vec<Event> {
    let (mut parser, mut input, mut found) = (Parser::new(role), BytesMut::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        while let Ok(Some(event)) = parser.next(&mut input) {
            match (found.last_mut(), event) {
                (Some(Event::Data { payload, last }), Event::Data { payload: more, last: end }) if !*last => {
                    *payload = [&payload[..], &more[..]].concat().into();
                    *last = end;
                }
                (_, event) => found.push(event),
            }
        }
    }
    found
}
