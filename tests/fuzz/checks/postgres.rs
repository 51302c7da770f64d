use adit::wire::postgres::{First, Key, KeyWatch, fatal, first, whole};

/// Panics where the answer changes once it is known.
pub fn check(data: &[u8]) {
    let mut answer = First::NeedMore;
    for end in 0..=data.len().min(64) {
        let now = first(&data[..end]);
        assert!(answer == First::NeedMore || answer == now, "the answer changed at byte {end}");
        answer = now;
    }
    if let Some(message) = whole(data) {
        assert!(data.starts_with(message) && matches!(answer, First::Cancel | First::Startup));
    }
    let (mut at_once, mut by_byte) = (KeyWatch::default(), KeyWatch::default());
    let found = at_once.take(data).clone();
    for byte in data {
        by_byte.take(&[*byte]);
    }
    assert_eq!(*by_byte.take(b""), found, "it depends on how the bytes come");
    assert!(!matches!(&found, Key::Found(key) if key.len() > 264));
    let error = fatal("08004", &String::from_utf8_lossy(data), "");
    assert_eq!(error.len(), 1 + u32::from_be_bytes([error[1], error[2], error[3], error[4]]) as usize);
}
