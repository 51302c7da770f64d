//! Joins a client with the stream of its tunnel.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    io::splice::{Side, Splice, SpliceEnd},
    tunnel::Lease,
};

/// Moves bytes both ways until both have ended, one breaks, or the tunnel is stopped.
///
/// A tunnel that is stopped is a backend that broke, also for a client that does not read and so would not notice. How the
/// backend broke is noted for `adit status`.
pub async fn join<C, B>(client: &mut C, backend: &mut B, lease: &Lease) -> SpliceEnd
where
    C: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut splice = Splice::new(client, backend);
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
