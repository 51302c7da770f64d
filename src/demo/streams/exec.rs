//! Exec, over WebSocket channels (0 stdin, 1 stdout, 2 stderr, 3 status) or SPDY (a stream each).

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    time::timeout,
};

use super::{
    COMPLETE_WITHIN, channels,
    spdy::{self, Opened},
};
use crate::demo::{
    Node,
    process::Sandbox,
    shell::{self, Stdio},
};

/// Parameters of an exec request.
#[derive(Clone, Debug)]
pub struct Request {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const CHANNELS: usize = 5;

/// Serves an exec over the channels of a WebSocket.
pub async fn over_channels<S>(stream: S, node: Arc<Node>, sandbox: Sandbox, request: Request)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    channels::serve(stream, CHANNELS, |mut receivers, messages| async move {
        let stdin = receivers.swap_remove(0);
        // A node first sends an empty message on the channel of stdout.
        messages.send(STDOUT, &[]).await;
        let (stdout, stdout_rx) = mpsc::channel::<Bytes>(4);
        let (stderr, stderr_rx) = mpsc::channel::<Bytes>(4);
        let pump = |channel, mut from: mpsc::Receiver<Bytes>| {
            let messages = messages.clone();
            async move {
                while let Some(bytes) = from.recv().await {
                    if !messages.send(channel, &bytes).await {
                        return;
                    }
                }
            }
        };
        let running = run(&node, &sandbox, &request, Stdio { stdin, stdout, stderr });
        let (status, (), ()) = tokio::join!(running, pump(STDOUT, stdout_rx), pump(STDERR, stderr_rx));
        messages.send(STATUS, status.to_string().as_bytes()).await;
    })
    .await;
}

/// Serves an exec over SPDY streams.
pub async fn over_spdy<S>(stream: S, node: Arc<Node>, sandbox: Sandbox, request: Request)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (opened_tx, mut opened) = mpsc::channel::<Opened>(8);
    let (frames, queue) = spdy::frames();
    let connection = spdy::serve(stream, node.clone(), |_| true, opened_tx, (frames.clone(), queue));
    let wanted = 1 + [request.stdin, request.stdout, request.stderr].into_iter().filter(|wanted| *wanted).count();
    let running = async {
        let mut streams = Vec::new();
        while streams.len() < wanted {
            match timeout(COMPLETE_WITHIN, opened.recv()).await {
                Ok(Some(stream)) => streams.push(stream),
                _ => return,
            }
        }
        let id = |kind: &str| streams.iter().find(|stream| stream.header("streamtype") == kind).map(|stream| stream.id);
        let (error, stdout_id, stderr_id) = (id("error"), id("stdout"), id("stderr"));
        let stdin = streams.iter().position(|stream| stream.header("streamtype") == "stdin");
        let stdin = stdin.map_or_else(|| mpsc::channel(1).1, |at| streams.swap_remove(at).incoming);
        let (stdout, stdout_rx) = mpsc::channel::<Bytes>(4);
        let (stderr, stderr_rx) = mpsc::channel::<Bytes>(4);
        let pump = |id: Option<u32>, mut from: mpsc::Receiver<Bytes>| {
            let frames = frames.clone();
            async move {
                while let Some(bytes) = from.recv().await {
                    if let Some(id) = id
                        && !frames.data(id, &bytes).await
                    {
                        return;
                    }
                }
                if let Some(id) = id {
                    frames.end(id).await;
                }
            }
        };
        let running = run(&node, &sandbox, &request, Stdio { stdin, stdout, stderr });
        let (status, (), ()) = tokio::join!(running, pump(stdout_id, stdout_rx), pump(stderr_id, stderr_rx));
        if let Some(error) = error {
            frames.data(error, status.to_string().as_bytes()).await;
            frames.end(error).await;
        }
        // The client closes the connection after it has read the status.
        while timeout(COMPLETE_WITHIN, opened.recv()).await.is_ok_and(|stream| stream.is_some()) {}
    };
    tokio::select! {
        () = connection => {}
        () = running => {}
    }
}

/// Runs the command until it or its container ends. Returns the Status object.
async fn run(node: &Node, sandbox: &Sandbox, request: &Request, mut stdio: Stdio) -> Value {
    if !request.stdin {
        stdio.stdin = mpsc::channel(1).1;
    }
    let process = node.world.process(&sandbox.uid);
    let ended = async {
        match &process {
            Some(process) => process.tasks.ended().await,
            None => std::future::pending().await,
        }
    };
    let running = async {
        node.faults.thaws().await;
        shell::run(node, sandbox, &request.command, stdio).await
    };
    let code = tokio::select! {
        code = running => code,
        () = ended => 137,
    };
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: command terminated with exit code {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}
    })
}
