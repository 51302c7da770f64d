//! Traffic for `adit demo`, so that there is something to see: pages, an upload, a slow request, a failure, an event stream, and
//! a pod that restarts now and then.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{interval, sleep, timeout},
};

use crate::{config::KubeconfigPaths, k8s::client::Clusters, routing::ClusterId};

/// Interval between two requests.
const EVERY: Duration = Duration::from_millis(700);

/// Number of requests between two restarts of a pod: about one minute.
const RESTART_EVERY: usize = 80;

/// Time limit of a request.
const PATIENCE: Duration = Duration::from_secs(15);

/// The requests, in order: method, host, path, body.
const REQUESTS: [(&str, &str, &str, &str); 16] = [
    ("GET", "web.shop.localhost", "/", ""),
    ("GET", "shop.localhost", "/headers", ""),
    ("GET", "web.shop.localhost", "/whoami", ""),
    ("POST", "web.shop.localhost", "/upload", "{\"item\": \"lamp\", \"count\": 2}"),
    ("GET", "443.tools.shop.localhost", "/headers", ""),
    ("GET", "web.shop.localhost", "/whoami", ""),
    ("GET", "shop.localhost", "/download?bytes=40000", ""),
    ("GET", "80.tools.shop.localhost", "/", ""),
    ("GET", "web.shop.localhost", "/carts/7", ""),
    ("GET", "web.shop.localhost", "/whoami", ""),
    ("GET", "web.shop.localhost", "/slow", ""),
    ("PUT", "shop.localhost", "/upload", "hello"),
    ("GET", "81.tools.shop.localhost", "/headers", ""),
    ("GET", "web.shop.localhost", "/status/500", ""),
    ("GET", "web.shop.localhost", "/whoami", ""),
    ("GET", "web.shop.localhost", "/sse", ""),
];

/// Sends requests to adit until the future is dropped.
pub async fn run(addresses: Vec<SocketAddr>, kubeconfig: PathBuf) {
    let Some(address) = addresses.first().copied() else { return };
    let mut every = interval(EVERY);
    for at in 0.. {
        every.tick().await;
        let (method, host, path, body) = REQUESTS[at % REQUESTS.len()];
        // The dashboard shows the results. The tasks keep a slow request from delaying others.
        tokio::spawn(timeout(PATIENCE, send(address, method, host, path, body)));
        if at % RESTART_EVERY == RESTART_EVERY / 2 {
            tokio::spawn(restart(kubeconfig.clone()));
        }
    }
}

async fn send(address: SocketAddr, method: &str, host: &str, path: &str, body: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let port = address.port();
    let length = if method == "GET" { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUser-Agent: adit-demo\r\nAuthorization: Bearer a-demo-of-a-secret\r\n\
         Accept: application/json\r\n{length}Connection: close\r\n\r\n{body}"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = vec![0; 16 * 1024];
    // An endless response is read for 6 s, which are a few events.
    let reading = async {
        while stream.read(&mut answer).await? > 0 {}
        Ok(())
    };
    tokio::select! {
        read = reading => read,
        () = sleep(Duration::from_secs(6)) => Ok(()),
    }
}

/// Deletes a pod, as a rollout does; its controller creates another one.
async fn restart(kubeconfig: PathBuf) {
    let Ok(context) = "demo".parse() else { return };
    let id = ClusterId { kubeconfig: Arc::new(KubeconfigPaths(vec![kubeconfig])), context };
    let Ok(cluster) = Clusters::new(&[]).get(&id).await else { return };
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "shop");
    let Ok(found) = pods.list(&ListParams::default().labels("app=web")).await else { return };
    if let Some(name) = found.items.into_iter().find_map(|pod| pod.metadata.name) {
        // The pod may be gone already.
        let _ = pods.delete(&name, &DeleteParams::default()).await;
    }
}
