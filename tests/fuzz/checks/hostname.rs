use adit::routing::{hostname::DynamicName, table};

/// Panics where `data` breaks what the grammar of names promises: what was parsed is written so that it parses alike.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let host = table::normalise(text);
    assert_eq!(table::normalise(&host), host, "a normalised host stays as it is");
    if let Ok(name) = DynamicName::parse(&host, "k8s.localhost")
        && name.context.is_some()
    {
        let again = DynamicName::parse(&name.to_string(), "k8s.localhost").expect("what is written can be read");
        assert_eq!(again.namespace, name.namespace);
        assert_eq!(again.to_string(), name.to_string());
    }
}
