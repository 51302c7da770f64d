//! SPDY in WebSocket messages (KEP-4006), as an API server unwraps it.

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    sync::mpsc,
};

use crate::wire::websocket::{Event, Opcode, Parser, Role, put_frame};

/// Copies between the messages of a WebSocket and `inner`, until one of them ends.
pub async fn unwrap<S>(stream: S, inner: DuplexStream)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut from_inner, mut to_inner) = tokio::io::split(inner);
    let (pongs_tx, mut pongs) = mpsc::channel::<Bytes>(8);
    let up = async {
        let (mut parser, mut input) = (Parser::new(Role::Server), BytesMut::new());
        loop {
            match parser.next(&mut input) {
                Ok(Some(Event::Data { payload, .. })) => {
                    if to_inner.write_all(&payload).await.is_err() {
                        return;
                    }
                }
                Ok(Some(Event::Ping(payload))) => drop(pongs_tx.send(payload).await),
                Ok(Some(Event::Pong)) => {}
                Ok(Some(Event::Close(_))) | Err(_) => return,
                Ok(None) => match reader.read_buf(&mut input).await {
                    Ok(count) if count > 0 => {}
                    _ => return,
                },
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let mut out = BytesMut::new();
            tokio::select! {
                read = from_inner.read(&mut buffer) => match read {
                    Ok(count) if count > 0 => {
                        // An API server sends each chunk as a non-final frame and an empty last one.
                        put_frame(&mut out, Opcode::Binary, &buffer[..count], None);
                        out[0] &= 0x7f;
                        put_frame(&mut out, Opcode::Continuation, &[], None);
                    }
                    _ => return,
                },
                Some(payload) = pongs.recv() => put_frame(&mut out, Opcode::Pong, &payload, None),
            }
            if writer.write_all(&out).await.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
