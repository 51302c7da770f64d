use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex},
    time::{sleep, timeout},
};

use super::*;
use crate::{
    k8s::websocket::channels::{Channels, Piece},
    wire::websocket::{Event, Opcode, Parser, Role, put_frame},
};

/// A server that may or may not answer pings.
struct Server {
    read: ReadHalf<DuplexStream>,
    write: WriteHalf<DuplexStream>,
    parser: Parser,
    input: BytesMut,
}

impl Server {
    fn new(buffer: usize) -> (Framed<Channels>, Self) {
        let (near, far) = duplex(buffer);
        let (read, write) = tokio::io::split(far);
        let server = Self { read, write, parser: Parser::new(Role::Server), input: BytesMut::new() };
        (Framed::new(Box::new(near), Channels::new()), server)
    }

    async fn event(&mut self) -> Event {
        loop {
            if let Some(event) = self.parser.next(&mut self.input).unwrap() {
                return event;
            }
            assert!(self.read.read_buf(&mut self.input).await.unwrap() > 0, "the client is gone");
        }
    }

    async fn say(&mut self, opcode: Opcode, payload: &[u8]) {
        let mut out = BytesMut::new();
        put_frame(&mut out, opcode, payload, None);
        self.write.write_all(&out).await.unwrap();
    }
}

async fn next(framed: &Framed<Channels>) -> io::Result<Option<Piece>> {
    poll_fn(|cx| framed.poll_next(cx)).await
}

async fn write(framed: &Framed<Channels>, payload: &[u8]) {
    poll_fn(|cx| framed.poll_ready(cx)).await.unwrap();
    framed.put(|channels, out| channels.put(0, payload, out));
    poll_fn(|cx| framed.poll_flush(cx)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_pings_whether_or_not_somebody_reads() {
    for reads in [true, false] {
        let (framed, mut server) = Server::new(1 << 16);
        let framed = Arc::new(framed);
        let reader = framed.clone();
        let reading =
            tokio::spawn(async move { if reads { next(&reader).await } else { std::future::pending().await } });
        let started = Instant::now();
        let mut last = started;
        while started.elapsed() < Duration::from_secs(600) {
            let Event::Ping(payload) = server.event().await else { panic!("no ping") };
            assert!((5..=10).contains(&last.elapsed().as_secs()), "{:?}", last.elapsed());
            last = Instant::now();
            server.say(Opcode::Pong, &payload).await;
        }
        assert!(!reading.is_finished());
        reading.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_the_end_of_a_connection_on_which_nothing_is_on_its_way() {
    let (framed, mut server) = Server::new(1 << 20);
    write(&framed, b"question").await;
    let started = Instant::now();
    let error = timeout(Duration::from_secs(60), next(&framed)).await.expect("it is noticed").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert!((15..=20).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    assert_eq!(poll_fn(|cx| framed.poll_ready(cx)).await.unwrap_err().kind(), io::ErrorKind::TimedOut);

    // If a pod does not read, pings wait behind its data.
    let (framed, mut stalled) = Server::new(1 << 20);
    write(&framed, &[7; 50_000]).await;
    assert!(timeout(Duration::from_secs(3600), next(&framed)).await.is_err(), "it may read again");
    loop {
        match stalled.event().await {
            Event::Data { .. } => {}
            Event::Ping(payload) => break stalled.say(Opcode::Pong, &payload).await,
            other => panic!("{other:?}"),
        }
    }
    stalled.say(Opcode::Binary, b"\x00answer").await;
    assert_eq!(next(&framed).await.unwrap().unwrap().payload, "answer");
    server.event().await;
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_was_away_finds_the_connection_alive() {
    let (framed, mut server) = Server::new(1 << 16);
    server.say(Opcode::Binary, b"\x00first").await;
    assert_eq!(next(&framed).await.unwrap().unwrap().payload, "first");
    // Its pongs are not delayed, but no task reads them.
    let serving = tokio::spawn(async move {
        loop {
            let Event::Ping(payload) = server.event().await else { panic!("no ping") };
            server.say(Opcode::Pong, &payload).await;
        }
    });
    sleep(Duration::from_secs(3600)).await;
    assert!(timeout(Duration::from_secs(600), next(&framed)).await.is_err(), "it lives, and says nothing");
    serving.abort();
}

#[tokio::test(start_paused = true)]
async fn only_a_close_frame_is_a_clean_end() {
    for (said, wanted) in [
        (&b"\x88\x02\x03\xe8"[..], None),
        (b"", Some(io::ErrorKind::ConnectionAborted)),
        (b"\x82\x05\x00ab", Some(io::ErrorKind::ConnectionAborted)),
        (b"\x02\x02\x00a\x88\x02\x03\xe8", Some(io::ErrorKind::Other)),
        (b"\x88\x02\x03\xf3", Some(io::ErrorKind::Other)),
        (b"\xf0\x00", Some(io::ErrorKind::InvalidData)),
    ] {
        let (framed, mut server) = Server::new(1 << 16);
        server.write.write_all(said).await.unwrap();
        server.write.shutdown().await.unwrap();
        let end = loop {
            match next(&framed).await {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(error) => break Some(error.kind()),
            }
        };
        assert_eq!(end, wanted, "{said:?}");
    }
    // After a local close nothing more is expected.
    let (framed, mut server) = Server::new(1 << 16);
    framed.close();
    poll_fn(|cx| framed.poll_flush(cx)).await.unwrap();
    assert_eq!(server.event().await, Event::Close(Some(1000)));
    server.write.shutdown().await.unwrap();
    assert!(next(&framed).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_close_frame_is_answered_in_time_or_the_connection_is_over() {
    let (framed, _server) = Server::new(1 << 16);
    framed.close();
    assert!(timeout(Duration::from_secs(20), next(&framed)).await.expect("it is over").is_err());
}

#[tokio::test(start_paused = true)]
async fn a_ping_of_the_peer_takes_no_wakeup_from_the_writer() {
    for seed in 0..20 {
        let (framed, mut server) = Server::new(4096);
        let (framed, total) = (Arc::new(framed), 300_000);
        let reader = framed.clone();
        let reading = tokio::spawn(async move { next(&reader).await });
        let writer = framed.clone();
        let writing = tokio::spawn(async move {
            for _ in 0..total / 10_000 {
                write(&writer, &[7; 10_000]).await;
            }
        });
        let (mut received, mut turn) = (0, seed);
        while received < total {
            turn += 1;
            if turn % 3 == 0 {
                server.say(Opcode::Ping, b"?").await;
                tokio::task::yield_now().await;
            }
            match timeout(Duration::from_secs(60), server.event()).await.expect("the writer goes on") {
                Event::Data { payload, .. } => received += payload.len(),
                Event::Ping(_) | Event::Pong => {}
                other => panic!("{other:?}"),
            }
        }
        writing.await.unwrap();
        reading.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_to_be_sent_is_bounded() {
    let (framed, mut server) = Server::new(1024);
    let framed = Arc::new(framed);
    let reader = framed.clone();
    let reading = tokio::spawn(async move { next(&reader).await });
    // The server does not read, but sends pings.
    let asking = tokio::spawn(async move {
        for _ in 0..100_000 {
            server.say(Opcode::Ping, &[b'?'; 125]).await;
        }
        server
    });
    let writer = framed.clone();
    let writing = tokio::spawn(async move {
        loop {
            write(&writer, &[7; PIECE]).await;
        }
    });
    let _server = asking.await.unwrap();
    sleep(Duration::from_secs(3600)).await;
    let unsent = framed.lock().unsent.len();
    assert!(unsent <= MOST_UNSENT + PIECE + 4096, "{unsent}");
    writing.abort();
    reading.abort();
}
