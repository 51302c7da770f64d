//! The demo's PostgreSQL: all simple queries have the same answer, and can be cancelled (PostgreSQL 16, chapter 55).

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::Notify,
    time::sleep,
};

use super::process::Process;

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;
const LONGEST: u32 = 1 << 20;

/// Duration of `SELECT pg_sleep(...)`.
const SLEEP: Duration = Duration::from_secs(60);

/// Serves a connection.
pub async fn serve(mut stream: DuplexStream, process: Process) {
    // An error means that the client has gone.
    let _ = serve_session(&mut stream, &process).await;
}

async fn serve_session(stream: &mut DuplexStream, process: &Process) -> io::Result<()> {
    loop {
        let length = stream.read_u32().await?;
        if !(8..LONGEST).contains(&length) {
            return Ok(());
        }
        let mut body = vec![0; length as usize - 4];
        stream.read_exact(&mut body).await?;
        match u32::from_be_bytes([body[0], body[1], body[2], body[3]]) {
            SSL_REQUEST | GSS_REQUEST => stream.write_all(b"N").await?,
            CANCEL_REQUEST => {
                process.say("a query is to be cancelled");
                process.sessions.cancel(&body[4..]);
                return Ok(());
            }
            _ => break,
        }
    }
    let (key, cancelled) = process.sessions.begin(&process.sandbox.name);
    let served = serve_queries(stream, process, &key, &cancelled).await;
    process.sessions.end(&key);
    served
}

async fn serve_queries(
    stream: &mut DuplexStream,
    process: &Process,
    key: &[u8; 8],
    cancelled: &Notify,
) -> io::Result<()> {
    let pod = &process.sandbox.name;
    let mut out = BytesMut::new();
    message(&mut out, b'R', &0u32.to_be_bytes());
    for (name, value) in [
        ("server_version", "16.0"),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
    ] {
        message(&mut out, b'S', format!("{name}\0{value}\0").as_bytes());
    }
    message(&mut out, b'K', key);
    message(&mut out, b'Z', b"I");
    stream.write_all(&out).await?;
    loop {
        let kind = stream.read_u8().await?;
        let length = stream.read_u32().await?;
        if !(4..LONGEST).contains(&length) || kind == b'X' {
            return Ok(());
        }
        let mut body = vec![0; length as usize - 4];
        stream.read_exact(&mut body).await?;
        let mut out = BytesMut::new();
        let sleeps = kind == b'Q' && String::from_utf8_lossy(&body).contains("pg_sleep");
        let is_cancelled = sleeps && {
            process.say("a query sleeps");
            tokio::select! {
                () = sleep(SLEEP) => false,
                () = cancelled.notified() => true,
            }
        };
        if is_cancelled {
            message(&mut out, b'E', b"SERROR\0VERROR\0C57014\0Mcanceling statement due to user request\0\0");
        } else if kind == b'Q' {
            let text = format!("this is {pod} of the adit demo, which knows no SQL");
            // One column of type text (OID 25), one row.
            let column = [
                &1u16.to_be_bytes()[..],
                b"answer\0",
                &[0; 6],
                &25u32.to_be_bytes(),
                &(-1i16).to_be_bytes(),
                &(-1i32).to_be_bytes(),
                &[0; 2],
            ]
            .concat();
            message(&mut out, b'T', &column);
            message(
                &mut out,
                b'D',
                &[&1u16.to_be_bytes()[..], &(text.len() as u32).to_be_bytes(), text.as_bytes()].concat(),
            );
            message(&mut out, b'C', b"SELECT 1\0");
        } else {
            message(&mut out, b'E', b"SERROR\0C0A000\0Mthe adit demo knows simple queries only\0\0");
        }
        message(&mut out, b'Z', b"I");
        stream.write_all(&out).await?;
    }
}

fn message(out: &mut BytesMut, kind: u8, body: &[u8]) {
    out.extend_from_slice(&[kind]);
    out.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    out.extend_from_slice(body);
}
