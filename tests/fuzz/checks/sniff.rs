use adit::wire::sniff::{Sniff, sniff, sniff_server};

/// Panics where `data` breaks what the sniffers promise: an answer stays the same, however much more comes.
pub fn check(data: &[u8]) {
    for sniff in [sniff as fn(&[u8]) -> Sniff, sniff_server] {
        let mut answer = Sniff::NeedMore;
        for end in 0..=data.len().min(256) {
            let now = sniff(&data[..end]);
            assert!(answer == Sniff::NeedMore || answer == now, "the answer changed at byte {end}");
            answer = now;
        }
    }
}
