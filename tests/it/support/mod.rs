//! Shared by the suite: the app in-process in front of a demo cluster, and clients.

pub mod ports;
pub mod schema;

use std::{
    env, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use adit::{
    app::{App, Overrides},
    config::{KubeconfigPaths, validate},
    demo::Demo,
    drain::Drain,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::{Builder, Handle, Runtime},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

/// Time limit: ten times as long as any step of the suite takes on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Returns the runtime of the app, the demo cluster and relays. `None`: that of the test, with one thread. With
/// `ADIT_TEST_WORKERS=4` it has four threads, as in the binary, which shows races that one thread cannot have.
fn workers() -> Option<&'static Runtime> {
    static WORKERS: OnceLock<Option<Runtime>> = OnceLock::new();
    let build = || {
        let count = env::var("ADIT_TEST_WORKERS").ok()?.parse().expect("ADIT_TEST_WORKERS is a number");
        Some(Builder::new_multi_thread().worker_threads(count).enable_all().build().expect("threads"))
    };
    WORKERS.get_or_init(build).as_ref()
}

/// Spawns a task on the app's runtime.
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    workers().map_or_else(Handle::current, |runtime| runtime.handle().clone()).spawn(task)
}

/// Runs a future on the app's runtime until its end, so that its sockets and tasks belong there.
pub async fn on_workers<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> T {
    spawn(task).await.expect("no panic")
}

/// Starts a demo cluster on the app's runtime.
pub async fn start_demo() -> Demo {
    on_workers(async { Demo::start().await.expect("a demo cluster") }).await
}

/// adit on a free port, in front of its own demo cluster.
pub struct TestApp {
    pub demo: Demo,
    pub http: SocketAddr,
    pub tcp: Vec<SocketAddr>,
    drain: Drain,
    running: JoinHandle<()>,
}

impl TestApp {
    /// Starts with this configuration, but `http.listen` on a free port.
    pub async fn start(config: &str) -> Self {
        Self::start_app(config, App::default()).await
    }

    /// Starts with `app`, which may follow a file.
    pub async fn start_app(config: &str, app: App) -> Self {
        let demo = start_demo().await;
        let kubeconfig = demo.kubeconfig();
        Self::start_on(demo, kubeconfig, config, app).await
    }

    /// Starts with `app`, and a kubeconfig for the demo cluster.
    pub async fn start_on(demo: Demo, kubeconfig: PathBuf, config: &str, app: App) -> Self {
        let config = validate::parse(Path::new("test.yaml"), config.as_bytes()).expect("a valid configuration");
        let kubeconfig = Some(KubeconfigPaths(vec![kubeconfig]));
        let listen = Some(vec!["127.0.0.1:0".parse().expect("an address")]);
        let app = App { overrides: Overrides { kubeconfig, listen, ..app.overrides }, ..app };
        let bound = on_workers(async move { app.bind(config).expect("free ports") }).await;
        let (http, tcp) = (bound.http_addresses()[0], bound.tcp_addresses());
        let drain = Drain::new();
        let of_app = drain.clone();
        let running = spawn(async move { bound.run(of_app).await.expect("adit runs") });
        Self { demo, http, tcp, drain, running }
    }

    /// Sends a GET on a new connection, and returns status and body.
    pub async fn get(&self, host: &str, path: &str) -> (u16, String) {
        self.request(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")).await
    }

    /// Sends a request unchanged, and returns status and body.
    pub async fn request(&self, request: &str) -> (u16, String) {
        let exchange = async {
            let mut stream = TcpStream::connect(self.http).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, io::Error>(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = timeout(PATIENCE, exchange).await.expect("an answer in time").expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("no status in {answer:?}"));
        (status, body.to_owned())
    }

    /// Ends the app as a signal does, and asserts that no task had to be cut.
    pub async fn finish(self) {
        let cut = self.drain.finish(Duration::from_secs(10)).await;
        timeout(PATIENCE, self.running).await.expect("it ends").expect("it does not panic");
        assert_eq!(cut, 0, "tasks were left at the end");
    }

    /// Returns the drain of the app, for tests that end it themselves.
    pub fn drain(&self) -> &Drain {
        &self.drain
    }
}

/// Waits until `condition` holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Sends a word to the echo, and returns whether it came back in time.
pub async fn echoes(address: SocketAddr, within: Duration) -> bool {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"word").await?;
        let mut word = [0; 4];
        stream.read_exact(&mut word).await?;
        Ok::<_, std::io::Error>(&word == b"word")
    };
    timeout(within, exchange).await.is_ok_and(|came| came.unwrap_or(false))
}

/// Sends `count` bytes and the end to the echo, and asserts that the same ones come back, and then the end.
pub async fn every_byte_returns(address: SocketAddr, count: u32) {
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    let sent: Vec<u8> = (0..count).map(|number| (number * 31 % 251) as u8).collect();
    let mut received = Vec::new();
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let ((), read) = tokio::join!(writing, timeout(PATIENCE, read.read_to_end(&mut received)));
    read.expect("it ends").unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}
