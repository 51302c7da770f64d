//! An exec as a byte stream: writes go to the program's standard input, reads come from its standard output.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    framing::{Channel, Event, Framing},
    program::{CONNECT_SECONDS, Reports, ServerEnd, complaint},
};
use crate::{
    backend::StreamFault,
    io::{Io, prefixed},
    k8s::{framed::PIECE, upgrade::exec::Executed},
    printable::printable,
};

/// Maximum bytes kept of the program's stderr, and of the Status object.
const LONGEST_REPORT: usize = 4 * 1024;

/// If the transport cannot close stdin alone (v4 channels): after the client's FIN, adit closes the exec once the
/// program has been silent for this long.
const QUIET: Duration = Duration::from_secs(30);

/// The same once the server has answered the client's last byte, as for a port-forward.
const QUIET_AFTER_ANSWER: Duration = Duration::from_millis(1_900);

/// The same after the server's FIN, when only bytes in flight can still arrive.
const QUIET_AFTER_SERVER: Duration = Duration::from_millis(500);

/// After the server's FIN, adit closes stdin once the client has not written for this long: a server may send its FIN
/// first and still read. A node gives a port-forward 1 s, and an exec gets no more either.
const QUIET_CLIENT: Duration = Duration::from_millis(200);
const LONGEST_AFTER_SERVER: Duration = Duration::from_secs(1);

/// Exit codes of a program that was stopped: 128 + SIGKILL, 128 + SIGTERM.
const STOPPED: [&str; 2] = ["137", "143"];

pub struct ExecStream {
    framing: Framing,
    target: String,
    pod: String,
    payload: Bytes,
    stderr: Vec<u8>,
    status: Vec<u8>,
    ended: bool,
    shut_down: Option<Instant>,
    last_read: Option<Instant>,
    last_written: Option<Instant>,
    reports: Reports,
    /// Whether the program reports how its server ended: only socat does.
    must_report: bool,
    /// When the program reported the server's FIN.
    server_ended: Option<Instant>,
    hold: Option<Pin<Box<Sleep>>>,
    close_sent: bool,
    /// Deadline by which the program has to report its connection.
    connected_by: Option<Pin<Box<Sleep>>>,
    probation: Option<Probation>,
    /// Called if the exec ends because the container has no such program.
    if_without_program: Option<Box<dyn FnOnce() + Send>>,
}

/// Resolves once the server has been silent for too long, with the reason to give up the stream. `None`: the stream stays.
type Probation = BoxFuture<'static, Option<StreamFault>>;

impl ExecStream {
    /// `target` and `pod` are for the error message.
    pub fn new(executed: Executed, target: String, pod: String) -> Self {
        Self {
            framing: Framing::new(executed.io, executed.protocol),
            target,
            pod,
            payload: Bytes::new(),
            stderr: Vec::new(),
            status: Vec::new(),
            ended: false,
            shut_down: None,
            last_read: None,
            last_written: None,
            reports: Reports::default(),
            must_report: false,
            server_ended: None,
            hold: None,
            close_sent: false,
            connected_by: None,
            probation: None,
            if_without_program: None,
        }
    }

    /// Calls `act` if the exec ends because the container has no such program.
    pub fn if_without_program(&mut self, act: impl FnOnce() + Send + 'static) {
        self.if_without_program = Some(Box::new(act));
    }

    /// Watches the server until it has sent anything. Pings it, so that it answers even while the program is silent.
    pub fn on_probation(self, probation: Probation) -> Self {
        self.framing.ping();
        Self { probation: Some(probation), ..self }
    }

    /// Returns whether the server has sent anything.
    pub fn has_heard(&self) -> bool {
        self.framing.has_heard()
    }

    /// Makes reads fail unless the program reports its connection in time.
    pub fn expect_announcement(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(CONNECT_SECONDS.into());
        self.connected_by = Some(Box::pin(sleep_until(deadline)));
    }

    /// Declares that the program reports the server's end: without that report, the end of the exec is an error.
    pub fn expect_report(&mut self) {
        self.must_report = true;
    }

    /// Returns what socat has reported so far.
    pub fn reports(&self) -> &Reports {
        &self.reports
    }

    /// Returns whether stdin was closed.
    pub fn is_shut_down(&self) -> bool {
        self.shut_down.is_some()
    }

    /// Returns the program's stderr so far.
    pub fn stderr(&self) -> &[u8] {
        &self.stderr
    }

    /// Returns whether the exec ended because the container has no such program.
    pub fn is_without_program(&self) -> bool {
        // Some container runtimes report it as an exit code, as shells do. Programs report missing files and hosts with others.
        if !matches!(exit_code(&self.status()), None | Some("126" | "127")) {
            return false;
        }
        let said = [&self.stderr[..], &self.status].concat();
        let said = String::from_utf8_lossy(&said).to_ascii_lowercase();
        ["executable file not found", "no such file or directory", "not found"].iter().any(|words| said.contains(words))
    }

    /// Returns whether the program has exited by itself, with any code.
    pub fn has_exited(&self) -> bool {
        exit_code(&self.status()).is_some_and(|code| !STOPPED.contains(&code))
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&self.status).unwrap_or_default()
    }

    /// Returns the error that the stream ends with. `None`: a clean end, as far as adit knows.
    fn fault(&self) -> Option<StreamFault> {
        let status = self.status();
        let has_failed = status["status"] == "Failure";
        let code = exit_code(&status);
        match &self.reports.server_ended {
            Some(ServerEnd::Broken(reason)) => return Some(self.broke(reason.clone())),
            // After the server's FIN, socat fails only if the server accepts no more bytes, which is not an error of the answer.
            Some(ServerEnd::Clean) if self.close_sent || !has_failed && !status.is_null() || code.is_some() => {
                return None;
            }
            _ => {}
        }
        if has_failed {
            let said = String::from_utf8_lossy(&self.stderr);
            let complaints: Vec<_> = said.lines().filter_map(|line| complaint(line.trim_end())).collect();
            let said = printable(&complaints.join("\n"));
            let message = status["message"].as_str().map(printable).unwrap_or_default();
            let detail = match code {
                _ if !said.is_empty() => said,
                Some(code) if STOPPED.contains(&code) => format!("the pod or its container was stopped ({message})"),
                _ => message,
            };
            return Some(match self.reports.is_connected || self.last_read.is_some() {
                true => self.broke(detail),
                false => StreamFault::Jump { target: self.target.clone(), pod: self.pod.clone(), detail },
            });
        }
        if self.close_sent {
            return None;
        }
        // A node that loses the program, or an API server that loses the node, may report success.
        if status.is_null() || self.must_report {
            return Some(StreamFault::Lost {
                detail: format!("the exec in pod {} ended before the server did", self.pod),
            });
        }
        None
    }

    fn broke(&self, detail: String) -> StreamFault {
        StreamFault::JumpBroke { target: self.target.clone(), pod: self.pod.clone(), detail }
    }

    /// Handles a piece of a channel.
    fn take(&mut self, channel: Channel, payload: Bytes) {
        // Any output shows that the program does not wait for its connection any more. Nodes begin with an empty message.
        if !payload.is_empty() {
            self.connected_by = None;
        }
        let kept = match channel {
            Channel::Stdin => return,
            Channel::Stdout => return self.payload = payload,
            Channel::Stderr => {
                self.reports.take(&payload);
                if self.reports.server_ended.is_some() {
                    self.server_ended.get_or_insert_with(Instant::now);
                }
                &mut self.stderr
            }
            Channel::Status => &mut self.status,
        };
        let room = LONGEST_REPORT - kept.len();
        kept.extend_from_slice(&payload[..payload.len().min(room)]);
    }

    /// Ends the program when it is due: closes stdin, and if the transport cannot close it alone, the exec.
    fn poll_hold(&mut self, cx: &mut Context<'_>) {
        while let Some(deadline) = self.next_end() {
            let hold = self.hold.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if hold.deadline() != deadline {
                hold.as_mut().reset(deadline);
            }
            if hold.as_mut().poll(cx).is_pending() {
                return;
            }
            match self.shut_down {
                None => self.end_stdin(),
                Some(_) => {
                    self.close_sent = true;
                    self.framing.close();
                }
            }
            // The next read reports an error.
            let _ = self.framing.poll_flush(cx);
        }
    }

    /// Returns when the next end is due: that of stdin, then that of the exec. `None`: none is due.
    fn next_end(&self) -> Option<Instant> {
        match (self.shut_down, self.server_ended) {
            (None, Some(ended)) => {
                let quiet = self.last_written.map_or(ended, |at| (at + QUIET_CLIENT).max(ended));
                Some(quiet.min(ended + LONGEST_AFTER_SERVER))
            }
            (Some(shut_down), ended) if !self.close_sent && !self.framing.ends_stdin() => {
                let is_answered = self.last_read > self.last_written;
                let quiet = match (ended, is_answered) {
                    (Some(_), _) => QUIET_AFTER_SERVER,
                    (None, true) => QUIET_AFTER_ANSWER,
                    (None, false) => QUIET,
                };
                Some(self.last_read.map_or(shut_down, |at| at.max(shut_down)) + quiet)
            }
            _ => None,
        }
    }

    fn end_stdin(&mut self) {
        self.shut_down = Some(Instant::now());
        self.framing.put_end_of_stdin();
    }
}

impl AsyncRead for ExecStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.payload.is_empty() {
                prefixed::take(&mut this.payload, buf);
                this.last_read = Some(Instant::now());
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                if let Some(act) = this.if_without_program.take()
                    && this.is_without_program()
                {
                    act();
                }
                return Poll::Ready(this.fault().map_or(Ok(()), |fault| Err(fault.into())));
            }
            match this.framing.poll_next(cx) {
                Poll::Ready(Ok(Some(Event::Data(channel, payload)))) => this.take(channel, payload),
                Poll::Ready(Ok(Some(Event::Ended))) => this.ended = true,
                // adit has closed the exec, or the program's status has arrived.
                Poll::Ready(_) if this.close_sent || !this.status.is_empty() => this.ended = true,
                Poll::Ready(Ok(None)) => return Poll::Ready(Err(lost("the exec ended without a status".to_owned()))),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(lost(error.to_string()))),
                Poll::Pending => {
                    if this.framing.has_heard() {
                        this.probation = None;
                    }
                    if let Some(probation) = &mut this.probation
                        && let Poll::Ready(fault) = probation.as_mut().poll(cx)
                    {
                        this.probation = None;
                        if let Some(fault) = fault {
                            return Poll::Ready(Err(fault.into()));
                        }
                    }
                    if let Some(connected_by) = &mut this.connected_by
                        && connected_by.as_mut().poll(cx).is_ready()
                    {
                        let (target, pod) = (this.target.clone(), this.pod.clone());
                        let detail = format!("no answer within {CONNECT_SECONDS} s");
                        return Poll::Ready(Err(StreamFault::Jump { target, pod, detail }.into()));
                    }
                    this.poll_hold(cx);
                    return Poll::Pending;
                }
            }
        }
    }
}

/// Returns the program's exit code in the Status object. `None`: it has none.
fn exit_code(status: &serde_json::Value) -> Option<&str> {
    let causes = status["details"]["causes"].as_array()?;
    causes.iter().filter(|cause| cause["reason"] == "ExitCode").find_map(|cause| cause["message"].as_str())
}

fn lost(detail: String) -> io::Error {
    StreamFault::Lost { detail }.into()
}

impl AsyncWrite for ExecStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.shut_down.is_some() || self.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.framing.poll_ready(cx))?;
        let piece = &buf[..buf.len().min(PIECE)];
        self.framing.put_stdin(piece);
        self.last_written = Some(Instant::now());
        if let Poll::Ready(Err(error)) = self.framing.poll_flush(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.framing.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shut_down.is_none() {
            self.end_stdin();
        }
        ready!(self.framing.poll_flush(cx))?;
        // A waiting reader has to set the timer, in this task or in another.
        self.poll_hold(cx);
        Poll::Ready(Ok(()))
    }
}

impl Io for ExecStream {}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::{
        k8s::upgrade::exec::{ExecProtocol, ExecTransport},
        wire::websocket::{Opcode, put_frame},
    };

    const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;
    const KILLED: &str = r#"{"status":"Failure","reason":"NonZeroExitCode","message":"exit code 137",
        "details":{"causes":[{"reason":"ExitCode","message":"137"}]}}"#;
    const REFUSED: &str = r#"{"status":"Failure","reason":"NonZeroExitCode","message":"exit code 1",
        "details":{"causes":[{"reason":"ExitCode","message":"1"}]}}"#;
    const INTERNAL: &str = r#"{"status":"Failure","reason":"InternalError","message":"error reading from the node"}"#;

    /// Returns how the stream ends if the program printed these lines with socat's prefix, and ended with `status`.
    async fn end(is_socat: bool, lines: &[&str], status: &str) -> Result<String, String> {
        let (near, mut far) = duplex(1 << 16);
        let (transport, protocol) = (ExecTransport::WebSocket, ExecProtocol::V5);
        let executed = Executed { io: Box::new(near), transport, protocol, took: Duration::ZERO };
        let mut stream = ExecStream::new(executed, "db:5432".to_owned(), "jump".to_owned());
        if is_socat {
            stream.expect_report();
        }
        let lines = lines.iter().map(|line| format!("\u{2}2026/11/30 03:11:49 socat[7] {line}\n"));
        let mut said = BytesMut::new();
        for message in ["\u{1}out".to_owned()].into_iter().chain(lines).chain([format!("\u{3}{status}")]) {
            put_frame(&mut said, Opcode::Binary, message.as_bytes(), None);
        }
        far.write_all(&said).await.unwrap();
        let mut text = String::new();
        match stream.read_to_string(&mut text).await {
            Ok(_) => Ok(text),
            Err(error) => Err(error.to_string()),
        }
    }

    #[tokio::test]
    async fn a_close_without_a_status_is_no_clean_end() {
        let (near, mut far) = duplex(1 << 16);
        let (transport, protocol) = (ExecTransport::WebSocket, ExecProtocol::V5);
        let executed = Executed { io: Box::new(near), transport, protocol, took: Duration::ZERO };
        let mut stream = ExecStream::new(executed, "db:5432".to_owned(), "jump".to_owned());
        let mut said = BytesMut::new();
        put_frame(&mut said, Opcode::Binary, b"\x01out", None);
        put_frame(&mut said, Opcode::Close, &1000_u16.to_be_bytes(), None);
        far.write_all(&said).await.unwrap();
        let mut out = String::new();
        let error = stream.read_to_string(&mut out).await.unwrap_err();
        assert!(error.to_string().contains("without a status"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_program_is_told_from_a_program_that_reports_something_missing() {
        let code = |code: u8, message: &str| {
            json!({"status": "Failure", "message": message,
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}})
        };
        let missing = r#"exec: "socat": executable file not found in $PATH"#;
        let internal = json!({"status": "Failure", "reason": "InternalError", "message": missing});
        for (status, is_missing, has_exited) in [
            (internal, true, false),
            (code(127, missing), true, true),
            (code(1, "socat: /run/db.sock: No such file or directory"), false, true),
            (code(137, "command terminated with exit code 137"), false, false),
            (json!({"status": "Success"}), false, false),
        ] {
            let (near, mut far) = duplex(1 << 16);
            let (transport, protocol) = (ExecTransport::WebSocket, ExecProtocol::V5);
            let executed = Executed { io: Box::new(near), transport, protocol, took: Duration::ZERO };
            let mut stream = ExecStream::new(executed, "db:5432".to_owned(), "jump".to_owned());
            let (told, is_told) = std::sync::mpsc::channel();
            stream.if_without_program(move || told.send(()).unwrap());
            let mut said = BytesMut::new();
            put_frame(&mut said, Opcode::Binary, format!("\u{3}{status}").as_bytes(), None);
            far.write_all(&said).await.unwrap();
            let ended = stream.read_to_end(&mut Vec::new()).await;
            assert_eq!(
                (is_told.try_recv().is_ok(), stream.has_exited()),
                (is_missing, has_exited),
                "{status} {ended:?}"
            );
        }
    }

    #[tokio::test]
    async fn reports_are_kept_in_bounds_and_an_incomplete_status_is_no_clean_end() {
        let long = "x".repeat(2 * LONGEST_REPORT);
        let status = format!(r#"{{"status":"Failure","message":"{long}"}}"#);
        assert!(end(false, &[], &status).await.is_err());
        let (near, _far) = duplex(64);
        let (transport, protocol) = (ExecTransport::WebSocket, ExecProtocol::V5);
        let executed = Executed { io: Box::new(near), transport, protocol, took: Duration::ZERO };
        let mut stream = ExecStream::new(executed, "db:5432".to_owned(), "jump".to_owned());
        for _ in 0..2 {
            ExecStream::take(&mut stream, Channel::Stderr, Bytes::from(long.clone()));
            ExecStream::take(&mut stream, Channel::Status, Bytes::from(long.clone()));
        }
        assert_eq!((stream.stderr.len(), stream.status.len()), (LONGEST_REPORT, LONGEST_REPORT));
    }

    #[tokio::test]
    async fn an_end_is_clean_only_where_the_server_has_ended() {
        let start = "N starting data transfer loop with FDs [0,1] and [5,5]";
        let at_eof = "N socket 2 (fd 5) is at EOF";
        let reset = ["W read(5, 0x55f4, 8192): Connection reset by peer", "N socket 2 to socket 1 is in error"];
        for (lines, status) in [
            (&[start, at_eof][..], SUCCESS),
            (&[start, at_eof, "E write(5, 0x55f4, 2): Broken pipe"], REFUSED),
            // After the server's end adit stops the program: its exit code says nothing.
            (&[start, at_eof], KILLED),
        ] {
            assert_eq!(end(true, lines, status).await.as_deref(), Ok("out"), "{lines:?} {status}");
        }
        for (lines, status, wanted) in [
            (&[start, reset[0], reset[1], at_eof][..], SUCCESS, "through pod jump: Connection reset by peer"),
            (&[start], SUCCESS, "the exec in pod jump ended before the server did"),
            (&[start, "N socket 1 (fd 0) is at EOF"], SUCCESS, "ended before the server did"),
            (&[], SUCCESS, "ended before the server did"),
            (&[start, at_eof], INTERNAL, "error reading from the node"),
            (&[start, at_eof], "", "ended before the server did"),
            (&[start], KILLED, "lost the connection to db:5432 through pod jump: the pod or its container was stopped"),
            (&[start], INTERNAL, "error reading from the node"),
        ] {
            let error = end(true, lines, status).await.unwrap_err();
            assert!(error.contains(wanted), "{lines:?} {status}: {error}");
        }
        assert_eq!(end(false, &[], SUCCESS).await.as_deref(), Ok("out"), "nc reports nothing");
        assert!(end(false, &[], "").await.is_err(), "but its end has a status");
    }
}
