use adit::wire::socks5::{greeting, request, user};

/// Panics where an answer changes once it is known, or counts bytes that are not there.
pub fn check(data: &[u8]) {
    stays(data, |bytes| greeting(bytes).map(|found| found.map(|(methods, length)| (methods.to_vec(), length))));
    stays(data, user);
    stays(data, request);
}

fn stays<T: PartialEq + Clone, E: PartialEq + Clone>(
    data: &[u8],
    parse: impl Fn(&[u8]) -> Result<Option<(T, usize)>, E>,
) {
    let mut known: Result<Option<(T, usize)>, E> = Ok(None);
    for end in 0..=data.len().min(600) {
        let now = parse(&data[..end]);
        assert!(matches!(known, Ok(None)) || known == now, "the answer changed at byte {end}");
        if let Ok(Some((_, length))) = &now {
            assert!(*length <= end, "{length} bytes of {end}");
        }
        known = now;
    }
}
