use std::collections::BTreeMap;

use adit::{
    backend::exec::framing::{Event, Spdy},
    k8s::{
        framed::{Codec, Incoming},
        websocket::channels::Channels,
    },
};
use bytes::BytesMut;

/// Panics where `data` breaks what the frames of an exec promise: every channel says the same, however the bytes are split.
pub fn check(data: &[u8]) {
    let of_channels = |pieces: &[&[u8]]| {
        said(Channels::new(), pieces, |piece| Some((usize::from(piece.channel), piece.payload.to_vec())))
    };
    let of_spdy = |pieces: &[&[u8]]| {
        said(Spdy::default(), pieces, |event| match event {
            Event::Data(channel, payload) => Some((channel as usize, payload.to_vec())),
            Event::Ended => None,
        })
    };
    for said in [&of_channels as &dyn Fn(&[&[u8]]) -> Said, &of_spdy] {
        let whole = said(&[data]);
        for cut in [1, 2, 9, data.len() / 2] {
            if let Some((first, second)) = data.split_at_checked(cut) {
                assert_eq!(said(&[first, second]), whole, "cut at {cut}");
            }
        }
    }
}

/// What each channel says, how many pings there are, and whether it ends as the protocol has it.
type Said = (BTreeMap<usize, Vec<u8>>, usize, Option<bool>);

fn said<C: Codec>(mut codec: C, pieces: &[&[u8]], data: impl Fn(C::Item) -> Option<(usize, Vec<u8>)>) -> Said {
    let (mut received, mut channels, mut pings) = (BytesMut::new(), BTreeMap::<usize, Vec<u8>>::new(), 0);
    for piece in pieces {
        received.extend_from_slice(piece);
        loop {
            match codec.next(&mut received) {
                Ok(Some(Incoming::Item(item))) => match data(item) {
                    Some((channel, payload)) => channels.entry(channel).or_default().extend_from_slice(&payload),
                    None => return (channels, pings, Some(true)),
                },
                Ok(Some(Incoming::Ping(_))) => pings += 1,
                Ok(Some(Incoming::Pong)) => {}
                Ok(Some(Incoming::Close(end))) => return (channels, pings, Some(end.is_ok())),
                Ok(None) => break,
                Err(_) => return (channels, pings, Some(false)),
            }
        }
    }
    (channels, pings, None)
}
