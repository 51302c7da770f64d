//! Joins a client with the stream of its tunnel.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    frontend::client_socket::ClientSocket,
    io::{
        Io,
        splice::{Side, Splice, SpliceEnd},
    },
    tunnel::Lease,
};

/// Does the same as [`carry`], and resets the side that did not break.
pub async fn join(client: &mut impl Io, backend: &mut impl Io, lease: &Lease, socket: ClientSocket) -> SpliceEnd {
    let end = carry(client, backend, lease, socket).await;
    end.reset_other(client, backend);
    end
}

/// Moves bytes both ways until both have ended, one breaks, or the tunnel is stopped.
///
/// A client whose socket is closed waits for no answer, and the backend learns that. A tunnel that is stopped is a backend that
/// broke, also for a client that does not read and so would not notice. `adit status` shows how the backend broke.
pub async fn carry<C, B>(client: &mut C, backend: &mut B, lease: &Lease, socket: ClientSocket) -> SpliceEnd
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: Io,
{
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
    };
    let end = splice.end(broken);
    if let Some((Side::Backend, error)) = &end.broken {
        lease.note_error(error);
    }
    end
}
