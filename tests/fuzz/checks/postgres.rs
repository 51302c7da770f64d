use adit::wire::postgres::{First, fatal, first};

/// Panics where the answer changes once it is known.
pub fn check(data: &[u8]) {
    let mut answer = First::NeedMore;
    for end in 0..=data.len().min(64) {
        let now = first(&data[..end]);
        assert!(answer == First::NeedMore || answer == now, "the answer changed at byte {end}");
        answer = now;
    }
    let error = fatal("08004", &String::from_utf8_lossy(data), "");
    assert_eq!(error.len(), 1 + u32::from_be_bytes([error[1], error[2], error[3], error[4]]) as usize);
}
