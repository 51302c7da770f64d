use adit::wire::spdy::{
    frame::{Frame, FrameError, Parser},
    headers::Decoder,
};
use bytes::BytesMut;

/// Panics where `data` breaks what the SPDY parsers promise: the same frames, however the bytes are split.
pub fn check(data: &[u8]) {
    let whole = frames(&[data]);
    for cut in [1, 7, 8, 9, data.len() / 2] {
        if let Some((first, second)) = data.split_at_checked(cut) {
            assert_eq!(frames(&[first, second]), whole, "cut at {cut}");
        }
    }
    let mut headers = Decoder::default();
    for frame in whole.0 {
        if let Frame::SynStream { headers: block, .. } | Frame::SynReply { headers: block, .. } = frame
            && headers.decode(&block).is_err()
        {
            break;
        }
    }
    let _ = Decoder::default().decode(data);
}

/// Returns the frames of a stream that comes in pieces, with the pieces of DATA joined.
fn frames(pieces: &[&[u8]]) -> (Vec<Frame>, Option<FrameError>) {
    let (mut parser, mut input, mut found) = (Parser::default(), BytesMut::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match parser.next(&mut input) {
                Ok(Some(frame)) => join(&mut found, frame),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fn join(found: &mut Vec<Frame>, frame: Frame) {
    if let (Some(Frame::Data { id, payload, fin }), Frame::Data { id: next, payload: more, fin: end }) =
        (found.last_mut(), &frame)
        && id == next
        && !*fin
    {
        *payload = [&payload[..], &more[..]].concat().into();
        *fin = *end;
        return;
    }
    found.push(frame);
}
