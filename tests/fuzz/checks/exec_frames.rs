use adit::{
    backend::exec::framing::{Channel, Event, Framing},
    k8s::upgrade::exec::ExecProtocol,
};
use bytes::BytesMut;

/// Panics where `data` breaks what the framings of an exec promise: every channel says the same, however the bytes are split.
pub fn check(data: &[u8]) {
    for protocol in [ExecProtocol::V5, ExecProtocol::V4, ExecProtocol::Spdy] {
        let whole = said(protocol, &[data]);
        for cut in [1, 2, 9, data.len() / 2] {
            if let Some((first, second)) = data.split_at_checked(cut) {
                assert_eq!(said(protocol, &[first, second]), whole, "{protocol:?}, cut at {cut}");
            }
        }
    }
}

/// Returns what each channel says, and whether the program has ended.
fn said(protocol: ExecProtocol, pieces: &[&[u8]]) -> ([Vec<u8>; 4], bool) {
    let (mut out, mut received) = (BytesMut::new(), BytesMut::new());
    let mut framing = Framing::new(protocol, &mut out);
    let mut channels: [Vec<u8>; 4] = Default::default();
    for piece in pieces {
        received.extend_from_slice(piece);
        loop {
            match framing.next(&mut received, &mut out) {
                Ok(Some(Event::Data(channel, payload))) => {
                    let channel = match channel {
                        Channel::Stdin => 0,
                        Channel::Stdout => 1,
                        Channel::Stderr => 2,
                        Channel::Status => 3,
                    };
                    channels[channel].extend_from_slice(&payload);
                }
                Ok(Some(Event::Ended)) => return (channels, true),
                Ok(None) => break,
                Err(_) => return (channels, false),
            }
        }
    }
    (channels, false)
}
