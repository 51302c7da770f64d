//! The client of a connection, for the audit log: its user and program, if it runs on this machine.

use std::{fs, path::PathBuf};

use tokio::task::spawn_blocking;

use crate::{
    frontend::{Connection, client_socket::ClientSocket},
    journal::{
        Journal,
        entry::{Client, Program},
    },
};

/// Begins the look-up of the client's program. `None`: there is no audit log.
pub fn look_for(journal: &Journal, connection: &Connection) -> Option<Client> {
    if !journal.is_audited() {
        return None;
    }
    let (client, socket) = (Client::default(), connection.socket);
    let found = client.clone();
    tokio::spawn(async move { wait_for(&found, socket).await });
    Some(client)
}

/// Waits until the program is known, as far as it can be. Callers wait before they serve: the client may exit a moment later.
pub async fn wait_for(client: &Client, socket: ClientSocket) {
    let look = || async { spawn_blocking(move || program(socket)).await.unwrap_or_default() };
    client.0.get_or_init(look).await;
}

fn program(socket: ClientSocket) -> Program {
    let Some((uid, inode)) = socket.owner() else { return Program::default() };
    let (pid, path) = process_with(inode).unzip();
    Program { uid: Some(uid), pid, path }
}

/// Returns the process that has a socket, and its program. Only processes of this user are readable (proc(5)).
fn process_with(inode: u32) -> Option<(u32, PathBuf)> {
    let wanted = PathBuf::from(format!("socket:[{inode}]"));
    let processes = fs::read_dir("/proc").ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let has_it = |process: &PathBuf| {
        let files = fs::read_dir(process.join("fd")).into_iter().flatten().filter_map(Result::ok);
        files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|target| target == wanted))
    };
    let mut numbered = processes.filter_map(|process| Some((process.file_name()?.to_str()?.parse().ok()?, process)));
    let (pid, process) = numbered.find(|(_, process)| has_it(process))?;
    Some((pid, fs::read_link(process.join("exe")).ok()?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_client_of_this_machine_is_known() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, peer) = listener.accept().await.unwrap();
        let found = program(ClientSocket::between(peer, server.local_addr().unwrap()));
        let this = std::env::current_exe().unwrap();
        assert_eq!((found.pid, found.path), (Some(std::process::id()), Some(this)));
        assert_eq!(found.uid, Some(rustix::process::getuid().as_raw()));
        assert_eq!(program(ClientSocket::UNKNOWN), Program::default());
    }
}
