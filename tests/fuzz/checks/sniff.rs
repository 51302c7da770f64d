use adit::wire::sniff::{Sniff, sniff};

/// Panics where `data` breaks what the sniffer promises: an answer stays the same, however much more comes.
pub fn check(data: &[u8]) {
    let mut answer = Sniff::NeedMore;
    for end in 0..=data.len().min(256) {
        let now = sniff(&data[..end]);
        assert!(answer == Sniff::NeedMore || answer == now, "the answer changed at byte {end}");
        answer = now;
    }
}
