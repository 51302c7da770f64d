use adit::wire::http1::{Piece, check_head, chunk, head_end};

/// Panics where `data` makes the reader of heads or chunks break what it promises: what it finds lies within the bytes, and does not
/// depend on how they were split.
pub fn check(data: &[u8]) {
    let mut at_once = head_end(data, 0);
    if let Ok(Some((blank, length))) = at_once {
        assert!(blank + length <= data.len());
        // A strict head has no line that a lenient reader would end elsewhere.
        if check_head(&data[blank..blank + length]).is_ok() {
            let head = &data[blank..blank + length];
            assert!(head.windows(2).all(|pair| (pair[0] == b'\r') == (pair[1] == b'\n')));
        }
        at_once = Ok(Some((blank, length)));
    }
    let split = (0..=data.len().min(512))
        .map(|end| head_end(&data[..end], end.saturating_sub(1)))
        .find(|found| found != &Ok(None));
    if let (Ok(Some(whole)), Some(Ok(Some(part)))) = (at_once, split) {
        assert_eq!(whole, part);
    }
    if let Ok(Piece::Last(length)) = chunk(data) {
        assert!(length <= data.len());
    }
}
