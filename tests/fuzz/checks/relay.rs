use adit::wire::relay::Frame;
use bytes::BytesMut;

/// Panics where a frame that was read does not survive being written.
pub fn check(data: &[u8]) {
    let mut input = BytesMut::from(data);
    while let Ok(Some(frame)) = Frame::take(&mut input) {
        let mut again = BytesMut::new();
        frame.put(&mut again);
        assert_eq!(Frame::take(&mut again), Ok(Some(frame)));
    }
}
