//! The load: a minimal HTTP/1.1 client, so that the result is about the path and not about the client.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::far::PART;

pub type Error = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Error>;

/// Time limit: ten times as long as any measurement takes on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

const TRANSFER: usize = 100 * 1024 * 1024;

#[derive(Clone)]
pub struct Load {
    pub address: SocketAddr,
    pub host: String,
}

/// Time of each exchange, and of all together.
pub struct Outcome {
    times: Vec<Duration>,
    within: Duration,
}

impl Outcome {
    pub fn count(&self) -> usize {
        self.times.len()
    }

    /// Returns the exchanges per second.
    pub fn rate(&self) -> f64 {
        self.count() as f64 / self.within.as_secs_f64()
    }

    /// Returns a percentile of the times, in microseconds.
    pub fn percentile(&self, percent: usize) -> f64 {
        let mut times = self.times.clone();
        times.sort_unstable();
        times.get(times.len() * percent / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }
}

impl Load {
    pub async fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    pub fn get(&self, path: &str) -> Vec<u8> {
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host).into_bytes()
    }

    /// Returns a request for a part of the page.
    pub fn part(&self) -> Vec<u8> {
        format!("GET /100m HTTP/1.1\r\nHost: {}\r\nRange: bytes=0-{}\r\n\r\n", self.host, PART - 1).into_bytes()
    }

    /// Returns the time of a second request on a connection.
    pub async fn one_more(&self) -> Result<Duration> {
        let mut stream = self.connect().await?;
        stream.write_all(&self.get("/whoami")).await?;
        answer(&mut stream).await?;
        let started = Instant::now();
        stream.write_all(&self.get("/whoami")).await?;
        timeout(PATIENCE, answer(&mut stream)).await??;
        Ok(started.elapsed())
    }

    /// Returns the time from connecting to the first byte of the response.
    pub async fn first_byte(&self) -> Result<Duration> {
        let started = Instant::now();
        let exchange = async {
            let mut stream = self.connect().await?;
            stream.write_all(&self.get("/whoami")).await?;
            stream.read_u8().await?;
            Ok::<_, Error>(())
        };
        timeout(PATIENCE, exchange).await??;
        Ok(started.elapsed())
    }

    /// Sends requests one after the other, on one connection per client.
    pub async fn keep_alive(&self, clients: usize, time: Duration) -> Result<Outcome> {
        self.run(clients, time, async |load, until, times: &mut Vec<Duration>| {
            let (mut stream, request) = (load.connect().await?, load.get("/whoami"));
            while Instant::now() < until {
                let started = Instant::now();
                stream.write_all(&request).await?;
                answer(&mut stream).await?;
                times.push(started.elapsed());
            }
            Ok(())
        })
        .await
    }

    /// Sends each request on a new connection.
    pub async fn connections(&self, clients: usize, time: Duration) -> Result<Outcome> {
        self.run(clients, time, async |load, until, times: &mut Vec<Duration>| {
            let request = load.get("/whoami");
            while Instant::now() < until {
                let started = Instant::now();
                let mut stream = load.connect().await?;
                stream.write_all(&request).await?;
                answer(&mut stream).await?;
                times.push(started.elapsed());
            }
            Ok(())
        })
        .await
    }

    async fn run<F>(&self, clients: usize, time: Duration, client: F) -> Result<Outcome>
    where
        F: AsyncFn(Load, Instant, &mut Vec<Duration>) -> Result<()>,
    {
        let started = Instant::now();
        let until = started + time;
        let runs = (0..clients).map(|_| async {
            let mut times = Vec::new();
            timeout(time + PATIENCE, client(self.clone(), until, &mut times)).await??;
            Ok::<_, Error>(times)
        });
        let times = futures::future::try_join_all(runs).await?.concat();
        Ok(Outcome { times, within: started.elapsed() })
    }

    /// Downloads, and returns MB/s.
    pub async fn download(&self) -> Result<f64> {
        timeout(PATIENCE, self.download_for(PATIENCE)).await?
    }

    /// Downloads for at most this long, and returns MB/s.
    pub async fn download_for(&self, time: Duration) -> Result<f64> {
        let started = Instant::now();
        let mut stream = self.connect().await?;
        stream.write_all(&self.get("/100m")).await?;
        let mut buffer = vec![0; 256 * 1024];
        let mut left = TRANSFER;
        while left > 0 && started.elapsed() < time {
            let count = timeout(PATIENCE, stream.read(&mut buffer)).await??;
            if count == 0 {
                return Err("the download ended early".into());
            }
            left = left.saturating_sub(count);
        }
        Ok((TRANSFER - left) as f64 / 1e6 / started.elapsed().as_secs_f64())
    }

    /// Uploads, and returns MB/s.
    pub async fn upload(&self) -> Result<f64> {
        self.upload_of(TRANSFER).await
    }

    /// Uploads about as much as fits in this time, and returns MB/s.
    pub async fn upload_for(&self, time: Duration) -> Result<f64> {
        let mut length = 1 << 20;
        loop {
            let started = Instant::now();
            let rate = self.upload_of(length).await?;
            if length == TRANSFER || started.elapsed() * 2 > time {
                return Ok(rate);
            }
            let within = time.as_secs_f64() / started.elapsed().as_secs_f64() / 2.0;
            length = ((length as f64 * within) as usize).clamp(length * 2, TRANSFER.max(length * 2)).min(TRANSFER);
        }
    }

    async fn upload_of(&self, length: usize) -> Result<f64> {
        let started = Instant::now();
        let exchange = async {
            let mut stream = self.connect().await?;
            let head = format!("POST /upload HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n\r\n", self.host);
            stream.write_all(head.as_bytes()).await?;
            let piece = vec![0; 256 * 1024];
            let mut left = length;
            while left > 0 {
                let count = left.min(piece.len());
                stream.write_all(&piece[..count]).await?;
                left -= count;
            }
            answer(&mut stream).await
        };
        timeout(PATIENCE * 2, exchange).await??;
        Ok(length as f64 / 1e6 / started.elapsed().as_secs_f64())
    }

    /// Opens connections, makes one request on each, and keeps them open.
    pub async fn idle(&self, count: usize) -> Result<Vec<TcpStream>> {
        let mut streams = Vec::new();
        for _ in 0..count {
            let mut stream = self.connect().await?;
            stream.write_all(&self.get("/whoami")).await?;
            timeout(PATIENCE, answer(&mut stream)).await??;
            streams.push(stream);
        }
        Ok(streams)
    }

    /// Starts downloads that are not read, and as many uploads to a port that never reads.
    pub async fn stall(&self, never_reads: SocketAddr, each: usize) -> Result<Vec<TcpStream>> {
        let mut streams = Vec::new();
        for _ in 0..each {
            let mut stream = self.connect().await?;
            stream.write_all(&self.get("/100m")).await?;
            streams.push(stream);
            let mut stream = TcpStream::connect(never_reads).await?;
            let piece = vec![0; 64 * 1024];
            // Write until all buffers on the path are full.
            while let Ok(written) = timeout(Duration::from_millis(300), stream.write_all(&piece)).await {
                written?;
            }
            streams.push(stream);
        }
        Ok(streams)
    }

    /// Returns how many of `count` requests, each on a new connection, were answered within a second.
    pub async fn probes(&self, count: usize) -> f64 {
        let mut probes = JoinSet::new();
        for _ in 0..count {
            let load = self.clone();
            probes.spawn(async move {
                timeout(Duration::from_secs(1), load.first_byte()).await.is_ok_and(|answer| answer.is_ok())
            });
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        probes.join_all().await.into_iter().filter(|answered| *answered).count() as f64
    }
}

/// Reads a response with a Content-Length, or without a body.
pub async fn answer(stream: &mut TcpStream) -> Result<()> {
    let mut received = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut received).await? == 0 {
            return Err("the connection ended before the answer".into());
        }
        let Some(head) = received.windows(4).position(|part| part == b"\r\n\r\n") else { continue };
        let text = String::from_utf8_lossy(&received[..head]).to_ascii_lowercase();
        let status = text.split(' ').nth(1).unwrap_or_default().to_owned();
        if !status.starts_with('2') {
            return Err(format!("status {status}").into());
        }
        let length = text.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        let length: usize = length.and_then(|length| length.parse().ok()).unwrap_or(0);
        if received.len() >= head + 4 + length {
            return Ok(());
        }
    }
}
