use adit::wire::connect::{Connect, parse};

/// Panics where what was read is not what another reader would write.
pub fn check(data: &[u8]) {
    let Ok(Connect { host, port, .. }) = parse(data) else { return };
    assert!(port > 0 && !host.is_empty() && !host.contains(char::is_whitespace));
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let again = parse(format!("CONNECT {authority} HTTP/1.1\r\n\r\n").as_bytes()).expect("it was read before");
    assert_eq!((again.host, again.port), (host, port));
}
