use adit::wire::client_hello::{Parse, parse};

/// Panics where `data` breaks what the ClientHello parser promises: no prefix of a hello is an error or another hello.
pub fn check(data: &[u8]) {
    let Ok(Parse::Hello(hello)) = parse(data) else { return };
    for end in 0..data.len().min(2048) {
        match parse(&data[..end]) {
            Ok(Parse::NeedMore) => {}
            Ok(Parse::Hello(shorter)) => assert_eq!(shorter, hello),
            Err(error) => panic!("a prefix of {end} bytes: {error}"),
        }
    }
}
