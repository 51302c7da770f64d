//! A cluster that is far away: how long people wait with adit, with kubectl, and with a direct connection to the pod over the
//! same distance.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    Column,
    load::{Error, Load, PATIENCE, Result, answer},
    median,
    peers::{Kind, NAMESPACE, Peer, Way},
    short,
};

pub const KINDS: [Kind; 3] = [Kind::Direct, Kind::KubectlTunnel, Kind::AditHttp];

const ROWS: &[(&str, &str)] = &[
    ("first byte of a first visit", "ms"),
    ("  of another Service of the context", "ms"),
    ("  of a new connection", "ms"),
    ("  of one more request", "ms"),
    ("page, first visit", "ms"),
    ("page, second visit", "ms"),
    ("page, h2 to the client", "ms"),
    ("first query: connect, five steps", "ms"),
    ("100 steps", "ms"),
    ("download", "MB/s"),
    ("upload", "MB/s"),
    ("request beside ten downloads, p50", "ms"),
    ("  p99", "ms"),
];

/// A page as browsers load it over HTTP/1.1: a document, then its parts over six connections.
const PARTS: usize = 60;
const CONNECTIONS: usize = 6;
pub const PART: usize = 20 * 1024;

/// Maximum time of a transfer.
const TRANSFER: Duration = Duration::from_secs(15);

/// Measures everything about one peer, in a new process.
pub async fn measure(kind: Kind, way: &Way, column: &mut Column) -> Result<()> {
    let mut note = |row: usize, value: f64| column.entry(row).or_default().push(value);
    let mut millis = |row: usize, time: Duration| note(row, time.as_secs_f64() * 1e3);
    let peer = Peer::launch(kind, way)?;
    let before = match kind {
        // kubectl looks everything up when it starts, while a person waits.
        Kind::KubectlTunnel | Kind::KubectlRaw => peer.age(),
        _ => Duration::ZERO,
    };
    let load = peer.load();
    let (first, whole) = page(&load).await?;
    millis(0, before + first);
    millis(4, before + whole);
    // Let connections that are being opened complete, so that neither program benefits from them.
    sleep(Duration::from_secs(1)).await;
    let (_, whole) = page(&load).await?;
    millis(5, whole);
    millis(2, load.first_byte().await?);
    millis(3, load.one_more().await?);
    match kind {
        Kind::Direct => millis(1, load.first_byte().await?),
        Kind::KubectlTunnel | Kind::KubectlRaw => {
            let another = Peer::launch(kind, way)?;
            another.load().first_byte().await?;
            millis(1, another.age());
        }
        Kind::AditTcp | Kind::AditHttp => {
            let another = Load { host: format!("again.{NAMESPACE}.localhost"), ..load.clone() };
            millis(1, another.first_byte().await?);
            millis(6, page_by_h2(&load).await?);
        }
    }
    millis(7, steps(&peer, 5).await?);
    millis(8, steps(&peer, 100).await?);
    note(9, load.download_for(TRANSFER).await?);
    note(10, load.upload_for(TRANSFER).await?);
    let times = beside(&load).await?;
    note(11, times[times.len() / 2]);
    note(12, times[times.len() * 99 / 100]);
    Ok(())
}

/// Returns the time to the first byte, and the time to the end.
async fn page(load: &Load) -> Result<(Duration, Duration)> {
    let started = Instant::now();
    let visit = async {
        let mut first = load.connect().await?;
        first.write_all(&load.get("/whoami")).await?;
        let mut byte = [0];
        first.peek(&mut byte).await?;
        let first_byte = started.elapsed();
        answer(&mut first).await?;
        let mut first = Some(first);
        let loading = (0..CONNECTIONS).map(|_| {
            let first = first.take();
            async move {
                let mut stream = match first {
                    Some(stream) => stream,
                    None => load.connect().await?,
                };
                for _ in 0..PARTS / CONNECTIONS {
                    stream.write_all(&load.part()).await?;
                    answer(&mut stream).await?;
                }
                Ok::<_, Error>(())
            }
        });
        futures::future::try_join_all(loading).await?;
        Ok::<_, Error>(first_byte)
    };
    let first_byte = timeout(PATIENCE, visit).await??;
    Ok((first_byte, started.elapsed()))
}

/// Loads the page over one HTTP/2 connection.
async fn page_by_h2(load: &Load) -> Result<Duration> {
    let started = Instant::now();
    let visit = async {
        let mut builder = h2::client::Builder::new();
        // Chromium's window sizes.
        builder.initial_window_size(6 << 20).initial_connection_window_size(15 << 20);
        let (mut sender, connection) = builder.handshake::<_, bytes::Bytes>(load.connect().await?).await?;
        let connection = tokio::spawn(connection);
        let get = |path: &str| {
            let request = http::Request::get(format!("http://{}{path}", load.host));
            if path == "/100m" { request.header("range", format!("bytes=0-{}", PART - 1)) } else { request }.body(())
        };
        let (document, _) = sender.send_request(get("/whoami")?, true)?;
        whole(document.await?).await?;
        let mut parts = Vec::new();
        for _ in 0..PARTS {
            sender = sender.ready().await?;
            parts.push(sender.send_request(get("/100m")?, true)?.0);
        }
        let parts = parts.into_iter().map(async |part| whole(part.await?).await);
        let lengths = futures::future::try_join_all(parts).await?;
        connection.abort();
        match lengths.iter().all(|length| *length == PART) {
            true => Ok::<_, Error>(()),
            false => Err(format!("a part has {lengths:?} bytes").into()),
        }
    };
    timeout(PATIENCE, visit).await??;
    Ok(started.elapsed())
}

async fn whole(answer: http::Response<h2::RecvStream>) -> Result<usize> {
    if !answer.status().is_success() {
        return Err(format!("status {}", answer.status()).into());
    }
    let (mut body, mut length) = (answer.into_body(), 0);
    while let Some(data) = body.data().await {
        let data = data?;
        length += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(length)
}

/// Makes `count` exchanges on a new connection, each after the answer to the one before, as databases and git do.
async fn steps(peer: &Peer, count: usize) -> Result<Duration> {
    let started = Instant::now();
    let exchange = async {
        let mut stream = TcpStream::connect(peer.echo).await?;
        stream.set_nodelay(true)?;
        let mut step = [7; 64];
        for _ in 0..count {
            stream.write_all(&step).await?;
            stream.read_exact(&mut step).await?;
        }
        Ok::<_, Error>(())
    };
    timeout(PATIENCE * 4, exchange).await??;
    Ok(started.elapsed())
}

/// Returns the times of requests on one connection beside ten downloads on others, in milliseconds and sorted.
async fn beside(load: &Load) -> Result<Vec<f64>> {
    let downloads = (0..10).map(|_| load.download_for(Duration::from_secs(3600)));
    let requests = async {
        // Wait until the downloads are under way.
        sleep(Duration::from_secs(2)).await;
        let mut stream = load.connect().await?;
        let mut times = Vec::new();
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until && times.len() < 100 {
            let started = Instant::now();
            stream.write_all(&load.get("/whoami")).await?;
            timeout(PATIENCE, answer(&mut stream)).await??;
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        Ok::<_, Error>(times)
    };
    // The downloads must not end the `select!`.
    let repeated = downloads.map(async |download| {
        download.await?;
        std::future::pending::<Result<()>>().await
    });
    tokio::select! {
        times = requests => times,
        Err(error) = futures::future::try_join_all(repeated) => Err(error),
    }
}

pub fn print(table: &BTreeMap<Kind, Column>) {
    print!("\n{:36}{:>6}", "", "");
    for kind in table.keys() {
        print!("{:>20}", if *kind == Kind::Direct { "the pod itself" } else { kind.name() });
    }
    println!();
    for (row, (name, unit)) in ROWS.iter().enumerate() {
        print!("{name:36}{unit:>6}");
        let value = |kind: Kind| Some(median(table.get(&kind)?.get(&row)?));
        for kind in table.keys() {
            let text = match (value(*kind), value(Kind::Direct)) {
                (Some(found), Some(base)) if *kind != Kind::Direct => {
                    format!("{} {:>6.2}x", short(found), found / base)
                }
                (Some(found), _) => format!("{}        ", short(found)),
                (None, _) => "-        ".to_owned(),
            };
            print!("{text:>20}");
        }
        println!();
    }
}
