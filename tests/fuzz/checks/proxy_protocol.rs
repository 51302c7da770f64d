use adit::wire::proxy_protocol::{Version, parse, write};

/// Panics where a header that was read lies outside of the bytes, or does not survive being written.
pub fn check(data: &[u8]) {
    let Ok(Some(header)) = parse(data) else { return };
    assert!(header.length <= data.len());
    if let Some((source, destination)) = header.addresses {
        for version in [Version::V1, Version::V2] {
            let again = parse(&write(version, source, destination)).unwrap().unwrap().addresses.unwrap();
            assert_eq!((again.0.port(), again.1.port()), (source.port(), destination.port()));
            assert_eq!(again.0.ip().to_canonical(), source.ip().to_canonical());
        }
    }
}
