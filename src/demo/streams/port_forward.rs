//! Port-forwards over SPDY: a pair of streams per connection into the pod.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};

use super::{
    COMPLETE_WITHIN, GRACE,
    spdy::{self, Frames, Opened},
};
use crate::demo::{Node, network::DialError, process::Sandbox};

/// Serves the port-forwards of an upgraded SPDY connection to a pod.
pub async fn serve<S>(stream: S, node: Arc<Node>, sandbox: Sandbox)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (opened_tx, mut opened) = mpsc::channel::<Opened>(16);
    let (frames, queue) = spdy::frames();
    let has_port = |headers: &[(String, String)]| {
        let port = headers.iter().find(|(name, _)| name == "port").and_then(|(_, port)| port.parse::<u16>().ok());
        port.is_some_and(|port| port > 0)
    };
    let accepts = |headers: &Vec<(String, String)>| has_port(headers);
    let connection = spdy::serve(stream, node.clone(), accepts, opened_tx, (frames.clone(), queue));
    let forwarding = async {
        let mut waiting: HashMap<String, Opened> = HashMap::new();
        let mut forwards = JoinSet::new();
        loop {
            let stream = match timeout(COMPLETE_WITHIN, opened.recv()).await {
                Ok(Some(stream)) => stream,
                Ok(None) => break,
                // The other stream of a pair has not come in time.
                Err(_) => {
                    waiting.clear();
                    continue;
                }
            };
            while forwards.try_join_next().is_some() {}
            let request = stream.header("requestid").to_owned();
            let Some(other) = waiting.remove(&request) else {
                waiting.insert(request, stream);
                continue;
            };
            let (error, data) = if stream.header("streamtype") == "data" { (other, stream) } else { (stream, other) };
            let port = data.header("port").parse().unwrap_or_default();
            node.faults.count_stream();
            forwards.spawn(forward(node.clone(), sandbox.clone(), port, error.id, data, frames.clone()));
        }
        while forwards.join_next().await.is_some() {}
    };
    tokio::select! {
        () = connection => {}
        () = forwarding => {}
    }
}

async fn forward(node: Arc<Node>, sandbox: Sandbox, port: u16, error: u32, mut data: Opened, frames: Frames) {
    let id = data.id;
    let problem = connect(&node, &sandbox, port, &mut data.incoming, |bytes| {
        let frames = frames.clone();
        async move { frames.data(id, &bytes).await }
    })
    .await;
    // A node ends the data stream first, then sends the error text, then ends the error stream.
    frames.end(id).await;
    if let Some(text) = problem {
        frames.data(error, text.as_bytes()).await;
    }
    frames.end(error).await;
}

/// Forwards a connection into a pod, over any transport. Returns the text for the error stream.
pub(super) async fn connect<F: Future<Output = bool>>(
    node: &Node,
    sandbox: &Sandbox,
    port: u16,
    incoming: &mut mpsc::Receiver<Bytes>,
    send: impl Fn(Bytes) -> F,
) -> Option<String> {
    let was_reset = || report(sandbox, port, &format!("read tcp4 127.0.0.1:{port}: read: connection reset by peer"));
    if node.faults.is_reset(port) {
        tokio::time::sleep(GRACE).await;
        return Some(was_reset());
    }
    let stream = match node.dial(sandbox, port) {
        Ok(stream) => stream,
        Err(DialError::Gone) => {
            return Some(report(sandbox, port, &format!("network namespace for sandbox {:?} is closed", id(sandbox))));
        }
        Err(_) => return Some(refused(sandbox, port)),
    };
    let process = node.world.process(&sandbox.uid);
    // The end of a pod is not an error: its connections end one second later.
    let ended = async {
        if let Some(process) = &process {
            process.tasks.ended().await;
        }
        tokio::time::sleep(GRACE).await;
    };
    let reset = async {
        node.faults.resets(port).await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        problem = copy(stream, incoming, send) => problem.map(|problem| report(sandbox, port, &problem)),
        () = ended => None,
        () = reset => Some(was_reset()),
    }
}

/// Copies in both directions until one ends, then in the other one for the grace. Returns the text for the error stream.
async fn copy<F: Future<Output = bool>>(
    stream: DuplexStream,
    incoming: &mut mpsc::Receiver<Bytes>,
    send: impl Fn(Bytes) -> F,
) -> Option<String> {
    let (mut from_pod, mut to_pod) = tokio::io::split(stream);
    let up = async {
        while let Some(bytes) = incoming.recv().await {
            if to_pod.write_all(&bytes).await.is_err() {
                return Some("write: broken pipe".to_owned());
            }
        }
        None
    };
    let down = async {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match from_pod.read(&mut buffer).await {
                Ok(0) => return None,
                Ok(count) if send(Bytes::copy_from_slice(&buffer[..count])).await => {}
                Ok(_) => return None,
                Err(error) => return Some(format!("read: {error}")),
            }
        }
    };
    tokio::pin!(up, down);
    tokio::select! {
        problem = &mut up => timeout(GRACE, down).await.ok().flatten().or(problem),
        problem = &mut down => {
            // Bytes in flight may have no reader any more.
            let _ = timeout(GRACE, up).await;
            problem
        }
    }
}

/// Returns containerd's error text, with the pod's name instead of a hash.
fn refused(sandbox: &Sandbox, port: u16) -> String {
    let (uid, id) = (&sandbox.uid, id(sandbox));
    let detail = format!(
        "failed to execute portforward in network namespace \"/var/run/netns/cni-{uid}\": failed to connect to localhost:{port} inside \
         namespace {id:?}, IPv4: dial tcp4 127.0.0.1:{port}: connect: connection refused IPv6 dial tcp6: address localhost: no suitable address found "
    );
    report(sandbox, port, &detail)
}

fn report(sandbox: &Sandbox, port: u16, problem: &str) -> String {
    format!("error forwarding port {port} to pod {}, uid : {problem}", id(sandbox))
}

/// Returns 64 digits, the format of a sandbox id.
fn id(sandbox: &Sandbox) -> String {
    sandbox.uid.replace('-', "").repeat(2)
}
