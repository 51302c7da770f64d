use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::sleep;
use tokio_test::io::Builder;

use super::*;
use crate::io::through::write_through;

/// Precision of the timers.
const ROUND: Duration = Duration::from_millis(10);

/// Always has bytes, until it has none left, and takes all bytes at once.
struct Eager {
    left: usize,
}

impl AsyncRead for Eager {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = buf.remaining().min(self.left);
        self.left -= count;
        buf.put_slice(&vec![7; count]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Eager {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Io for Eager {}

#[tokio::test]
async fn other_tasks_get_a_turn_during_a_transfer_that_never_waits() {
    let (mut client, mut backend) = (Eager { left: 0 }, Eager { left: 100 * CHUNK });
    let mut splice = Splice::new(&mut client, &mut backend);
    let mut polls = 1;
    while futures::poll!(std::pin::pin!(splice.run())).is_pending() {
        assert!(splice.down.count <= (polls * TURNS * CHUNK) as u64);
        polls += 1;
    }
    assert!(polls > 20, "{polls}");
}

#[tokio::test(start_paused = true)]
async fn a_transfer_that_never_waits_goes_on_after_its_turn() {
    let (mut client, mut backend) = (Eager { left: 0 }, Eager { left: 100 * CHUNK });
    let end = tokio::time::timeout(HALF_CLOSED, splice(&mut client, &mut backend)).await.expect("it goes on");
    assert_eq!(end.down, (100 * CHUNK) as u64);
}

#[tokio::test]
async fn a_half_close_leaves_the_reply_alone() {
    let (mut client, mut front) = duplex(64);
    let (mut back, mut backend) = duplex(64);
    let splicing = tokio::spawn(async move { splice(&mut front, &mut back).await });
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = String::new();
    backend.read_to_string(&mut question).await.unwrap();
    backend.write_all(b"answer").await.unwrap();
    drop(backend);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
    let end = splicing.await.unwrap();
    assert_eq!((end.up, end.down), (8, 6));
    assert!(end.broken.is_none());
}

#[tokio::test]
async fn what_came_before_a_reset_is_delivered_and_the_reset_is_told() {
    let (mut client, mut front) = duplex(64);
    let mut back = Builder::new().read(b"half an ans").read_error(io::ErrorKind::ConnectionReset.into()).build();
    let end = splice(&mut front, &mut back).await;
    assert!(matches!(&end.broken, Some((Side::Backend, error)) if error.kind() == io::ErrorKind::ConnectionReset));
    drop(front);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "half an ans");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_resets_behind_a_client_that_is_gone_has_closed() {
    // Bytes that the backend sent before, whether the client's socket is closed, and whether the reset is a fault.
    for (said, is_gone, is_fault) in [("bye", true, false), ("bye", false, true), ("", true, true)] {
        let (mut client, mut front) = duplex(64);
        client.write_all(b"quit").await.unwrap();
        client.shutdown().await.unwrap();
        // A mock shares its errors with its builder.
        let mut back = {
            let mut builder = Builder::new();
            if !said.is_empty() {
                builder.read(said.as_bytes());
            }
            builder.write(b"quit").read_error(io::ErrorKind::ConnectionReset.into()).build()
        };
        let is_gone = || is_gone;
        let broken = Splice::new(&mut front, &mut back).asking(&is_gone).run().await;
        assert_eq!(broken.is_some(), is_fault, "{said:?} {}", is_gone());
    }
}

/// Takes no bytes, but sends some.
struct Refusing(DuplexStream);

impl AsyncRead for Refusing {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Io for Refusing {}

impl AsyncWrite for Refusing {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn an_answer_is_read_though_the_question_is_no_longer_taken() {
    let (mut client, mut front) = duplex(64);
    let (back, mut backend) = duplex(64);
    client.write_all(b"a long upload").await.unwrap();
    let splicing = tokio::spawn(async move { splice(&mut front, &mut Refusing(back)).await });
    tokio::task::yield_now().await;
    backend.write_all(b"413").await.unwrap();
    drop(backend);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "413");
    drop(client);
    assert!(splicing.await.unwrap().broken.is_none());
}

/// Returns a client and a backend that are joined, and the splice's task.
fn joined(room: usize) -> (DuplexStream, DuplexStream, tokio::task::JoinHandle<SpliceEnd>) {
    let (client, mut front) = duplex(room);
    let (mut back, backend) = duplex(room);
    (client, backend, tokio::spawn(async move { splice(&mut front, &mut back).await }))
}

#[tokio::test(start_paused = true)]
async fn what_a_client_still_sends_after_the_end_of_the_backend_arrives() {
    let (mut client, mut backend, splicing) = joined(64);
    backend.write_all(b"greeting").await.unwrap();
    backend.shutdown().await.unwrap();
    let mut greeting = String::new();
    client.read_to_string(&mut greeting).await.unwrap();
    let sending = tokio::spawn(async move {
        for _ in 0..10 {
            client.write_all(&[b'x'; 100]).await.unwrap();
            sleep(HALF_CLOSED * 2 / 3).await;
        }
        client.shutdown().await.unwrap();
        client
    });
    let mut upload = Vec::new();
    backend.read_to_end(&mut upload).await.unwrap();
    drop(sending.await.unwrap());
    let end = splicing.await.unwrap();
    assert_eq!((greeting.as_str(), upload.len(), end.up, end.down), ("greeting", 1000, 1000, 8));
    assert!(end.broken.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_after_the_end_of_the_backend_is_waited_for_30_s() {
    let (mut client, mut backend, splicing) = joined(64);
    backend.shutdown().await.unwrap();
    sleep(HALF_CLOSED / 2).await;
    client.write_all(b"late").await.unwrap();
    let said = Instant::now();
    assert!(splicing.await.unwrap().broken.is_none());
    assert!((HALF_CLOSED..HALF_CLOSED + ROUND).contains(&said.elapsed()), "{:?}", said.elapsed());
    let mut late = String::new();
    backend.read_to_string(&mut late).await.unwrap();
    assert_eq!(late, "late", "and the backend sees a clean end");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_after_the_end_of_the_backend_has_a_second_in_a_drain() {
    let ((_client, mut front), (mut back, backend)) = (duplex(64), duplex(64));
    drop(backend);
    let mut splice = Splice::new(&mut front, &mut back);
    assert!(tokio::time::timeout(HALF_CLOSED / 2, splice.run()).await.is_err());
    splice.hurry();
    let drains = Instant::now();
    splice.run().await;
    assert!(drains.elapsed() <= IN_DRAIN + ROUND, "{:?}", drains.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_ended_is_waited_with_for_as_long_as_its_answer_takes() {
    let (mut client, mut backend, splicing) = joined(64);
    client.shutdown().await.unwrap();
    sleep(HALF_CLOSED * 100).await;
    backend.write_all(b"slow").await.unwrap();
    drop(backend);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "slow");
    assert!(splicing.await.unwrap().broken.is_none());
}

/// A backend that records when it is abandoned.
struct Noting {
    inner: DuplexStream,
    abandoned: Option<Instant>,
}

impl AsyncRead for Noting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.abandoned {
            Some(_) => Poll::Ready(Ok(())),
            None => Pin::new(&mut self.inner).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Noting {
    write_through!();
}

impl Io for Noting {
    fn abandon(&mut self) {
        self.abandoned = Some(Instant::now());
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_is_abandoned_once_its_client_is_gone_and_not_while_it_only_listens() {
    for (gone_after, noticed_after) in [(0, 0), (1, 2), (150, 200), (2_500, 3_000)] {
        let (gone_after, noticed_after) = (Duration::from_millis(gone_after), Duration::from_millis(noticed_after));
        let (mut client, mut front) = duplex(64);
        let (back, mut backend) = duplex(64);
        let mut back = Noting { inner: back, abandoned: None };
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let since = Instant::now();
        let is_gone = || since.elapsed() >= gone_after;
        let mut splice = Splice::new(&mut front, &mut back).asking(&is_gone);
        assert!(splice.run().await.is_none());
        let noticed = back.abandoned.expect("it is abandoned") - since;
        assert!((noticed_after..noticed_after + ROUND).contains(&noticed), "{gone_after:?}: {noticed:?}");
        drop(back);
        let mut question = String::new();
        backend.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_a_backend_never_takes_are_no_clean_end() {
    let (mut client, mut backend, splicing) = joined(8);
    backend.shutdown().await.unwrap();
    let writing = tokio::spawn(async move { client.write_all(&[0; 100]).await });
    let end = splicing.await.unwrap();
    assert!(matches!(&end.broken, Some((Side::Backend, error)) if error.kind() == io::ErrorKind::TimedOut));
    assert!(writing.await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_on_sending_to_nobody_is_reset_after_the_answer() {
    let (client, mut front) = duplex(64);
    let (back, mut backend) = duplex(64);
    let splicing = tokio::spawn(async move { splice(&mut front, &mut Refusing(back)).await });
    backend.write_all(b"413").await.unwrap();
    drop(backend);
    let (mut read, mut write) = tokio::io::split(client);
    let writing = tokio::spawn(async move {
        while write.write_all(b"upload").await.is_ok() {
            // A paused clock advances only while all tasks wait for it.
            sleep(ROUND / 2).await;
        }
    });
    let mut answer = String::new();
    read.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "413");
    let ended = Instant::now();
    let end = splicing.await.unwrap();
    assert!(matches!(&end.broken, Some((Side::Backend, error)) if error.kind() == io::ErrorKind::BrokenPipe));
    assert!((LINGER..LINGER + ROUND).contains(&ended.elapsed()), "{:?}", ended.elapsed());
    writing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_refuses_bytes_and_says_nothing_is_left() {
    let (mut client, mut front) = duplex(64);
    let (back, _backend) = duplex(64);
    client.write_all(b"hello").await.unwrap();
    let end = splice(&mut front, &mut Refusing(back)).await;
    assert!(matches!(&end.broken, Some((Side::Backend, error)) if error.kind() == io::ErrorKind::BrokenPipe));
}

#[tokio::test]
async fn every_byte_arrives_in_order_through_small_pipes() {
    let (client, mut front) = duplex(7);
    let (mut back, backend) = duplex(1000);
    tokio::spawn(async move { splice(&mut front, &mut back).await });
    let echo = tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(backend);
        tokio::io::copy(&mut read, &mut write).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let sent: Vec<u8> = (0..200_000u32).map(|number| (number * 7 % 251) as u8).collect();
    let (mut read, mut write) = tokio::io::split(client);
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    writing.await.unwrap();
    echo.await.unwrap();
    assert!(received == expected);
}
