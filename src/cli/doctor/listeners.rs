//! Finds the process that listens on a port.

use std::net::SocketAddr;

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    pub pid: u32,
    pub name: String,
}

/// Returns the process that listens on an address. `None`: the system does not show it, for example because it belongs to another
/// user.
#[cfg(target_os = "linux")]
pub fn owner(address: SocketAddr) -> Option<Owner> {
    use std::fs;
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening(&table, address.port()))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let has_it = |file: fs::DirEntry| {
            fs::read_link(file.path()).is_ok_and(|link| inodes.iter().any(|inode| *inode == link.to_string_lossy()))
        };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        if files.flatten().any(has_it) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(Owner { pid, name: name.trim().to_owned() });
        }
    }
    None
}

#[cfg(not(target_os = "linux"))]
pub fn owner(_: SocketAddr) -> Option<Owner> {
    None
}

/// Returns the inodes of the sockets that listen on a port (proc(5), /proc/net/tcp; state 0A is LISTEN).
#[cfg(target_os = "linux")]
fn listening(table: &str, port: u16) -> Vec<String> {
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = fields.get(1)?.rsplit_once(':')?.1;
        let is_it = u16::from_str_radix(local, 16) == Ok(port) && *fields.get(3)? == "0A";
        is_it.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = owner(listener.local_addr().unwrap()).unwrap();
        assert_eq!(found.pid, std::process::id());
        let free = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(owner(free), None);
        assert!(listening("head\nshort\n 0: 0100007F:XYZ 00000000:0000 0A", 80).is_empty());
    }
}
