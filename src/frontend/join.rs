//! Copies bytes between a client and the stream of its tunnel.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    frontend::{client_socket::ClientSocket, read_only::Unlocked},
    io::{
        Io,
        splice::{Side, Splice, SpliceEnd},
    },
    tunnel::Lease,
};

/// Copies bytes as [`carry`] does, and resets the side that did not break.
pub async fn join(client: &mut impl Io, backend: &mut impl Io, lease: &Lease, socket: ClientSocket) -> SpliceEnd {
    join_while(&Unlocked::default(), client, backend, lease, socket).await
}

/// Joins as [`join`] does, until the connection's context is locked again.
pub async fn join_while(
    unlocked: &Unlocked,
    client: &mut impl Io,
    backend: &mut impl Io,
    lease: &Lease,
    socket: ClientSocket,
) -> SpliceEnd {
    let end = carry_while(unlocked, client, backend, lease, socket).await;
    end.reset_other(client, backend);
    end
}

/// Copies bytes both ways until both sides have ended, one breaks, or the tunnel is stopped.
///
/// If the client has closed its socket, the stream to the backend breaks: no program waits for an answer. A stopped tunnel
/// counts as a broken backend, also for a client that does not read. `adit status` shows how the backend broke.
pub async fn carry<C, B>(client: &mut C, backend: &mut B, lease: &Lease, socket: ClientSocket) -> SpliceEnd
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: Io,
{
    carry_while(&Unlocked::default(), client, backend, lease, socket).await
}

/// Copies bytes as [`carry`] does, until the connection's context is locked again. This resets the backend, too.
pub async fn carry_while<C, B>(
    unlocked: &Unlocked,
    client: &mut C,
    backend: &mut B,
    lease: &Lease,
    socket: ClientSocket,
) -> SpliceEnd
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: Io,
{
    let mut is_locked = false;
    let is_gone = move || socket.is_closed();
    let mut splice = Splice::new(client, backend).asking(&is_gone);
    let broken = tokio::select! {
        broken = async {
            tokio::select! {
                broken = splice.run() => return broken,
                () = lease.draining() => splice.hurry(),
            }
            splice.run().await
        } => broken,
        () = lease.ended() => {
            Some((Side::Backend, io::Error::new(io::ErrorKind::ConnectionAborted, "the tunnel was stopped")))
        }
        error = unlocked.over() => {
            is_locked = true;
            Some((Side::Backend, error))
        }
    };
    let end = splice.end(broken);
    if is_locked {
        backend.reset();
    }
    if let Some((Side::Backend, error)) = &end.broken {
        lease.note_error(error);
    }
    end
}
