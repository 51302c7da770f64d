//! Tests that take too long for each run: `just endurance`.

use std::{
    fs, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{process::Process, support::PATIENCE};

const RELOADS: usize = 1000;
const SLOW_CLIENTS: usize = 1000;

/// Sends a GET on a connection, and reads the response.
async fn read_once(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"GET /whoami HTTP/1.1\r\nHost: web.localhost\r\n\r\n").await?;
    let (mut answer, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut piece).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => answer.extend_from_slice(&piece[..count]),
        }
        let text = String::from_utf8_lossy(&answer);
        if !text.starts_with("HTTP/1.1 200") && text.len() > 12 {
            return Err(io::Error::other(text.into_owned()));
        }
        // The body is the pod's name and a line feed.
        if text.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('\n')) {
            return Ok(());
        }
    }
}

/// Reads until `stop` is set. Every second reader opens a new connection each time.
async fn read_on(
    http: SocketAddr,
    opens: bool,
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
) {
    let mut kept = None;
    while !stop.load(Ordering::Relaxed) {
        let read = async {
            let mut stream = match kept.take() {
                Some(stream) => stream,
                None => TcpStream::connect(http).await?,
            };
            read_once(&mut stream).await?;
            Ok::<_, io::Error>(stream)
        };
        match timeout(PATIENCE, read).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => kept = Some(stream).filter(|_| !opens),
            Err(error) => failed.lock().unwrap().push(error.to_string()),
        }
        reads.fetch_add(1, Ordering::Relaxed);
    }
}

fn config(round: usize) -> String {
    let port = 21_000 + round % 5;
    format!(
        "http:\n  k8s:\n    routes:\n      web.localhost: {{namespace: shop, service: web, port: http}}\n      \
         r{}.localhost: {{namespace: shop, service: web, port: http}}\n\
         tcp: {{k8s: {{routes: {{{port}: {{namespace: shop, service: tools, port: 7001}}}}}}}}\n",
        round % 7
    )
}

#[tokio::test]
#[ignore = "takes a minute"]
async fn a_thousand_reloads_fail_no_read() {
    let adit = Process::start(&config(0), &[]).await;
    let (stop, reads, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::default());
    let readers: Vec<_> = (0..6)
        .map(|number| {
            let (stop, reads, failed) = (stop.clone(), reads.clone(), Arc::clone(&failed));
            tokio::spawn(read_on(adit.http, number % 2 == 0, stop, reads, failed))
        })
        .collect();
    let mut seen = 0;
    for round in 1..=RELOADS {
        fs::write(adit.config(), config(round)).unwrap();
        adit.signal("HUP").await;
        seen = adit.logs_after(seen, "config reloaded").await;
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    let failed = failed.lock().unwrap();
    assert!(failed.is_empty(), "{} reads failed: {:?}", failed.len(), failed.first());
    assert!(reads.load(Ordering::Relaxed) > RELOADS, "there was load");
}

#[tokio::test]
#[ignore = "takes a minute"]
async fn a_thousand_slow_clients_keep_nobody_out() {
    let adit = Process::start(&config(0), &[]).await;
    let kinds: [(&str, &[u8]); 5] = [
        ("nothing", b""),
        ("a head without end", b"GET / HTTP/1.1\r\nHost: web.localhost\r\nX-Slow: "),
        ("a body without end", b"POST /upload HTTP/1.1\r\nHost: web.localhost\r\nContent-Length: 100000\r\n\r\n"),
        ("a ClientHello without end", &[22, 3, 1, 2, 0, 1, 0, 1, 252]),
        ("half an HTTP/2", b"PRI * HTTP/2.0\r\n\r\n"),
    ];
    for (kind, start) in kinds {
        let mut clients = Vec::new();
        for _ in 0..SLOW_CLIENTS {
            let mut client = TcpStream::connect(adit.http).await.unwrap();
            client.write_all(start).await.unwrap();
            clients.push(client);
        }
        let until = Instant::now() + Duration::from_secs(12);
        while Instant::now() < until {
            for client in &clients {
                // adit may have closed the connection.
                let _ = client.try_write(if start.is_empty() { b"" } else { b"a" });
            }
            let mut stream = TcpStream::connect(adit.http).await.unwrap();
            let read = timeout(PATIENCE, read_once(&mut stream)).await;
            assert!(matches!(read, Ok(Ok(()))), "beside {SLOW_CLIENTS} clients that send {kind}: {read:?}");
            sleep(Duration::from_millis(500)).await;
        }
    }
}
