//! The bytes of visitors and their responses.

use std::{
    io,
    pin::Pin,
    sync::{Mutex, atomic::AtomicBool},
    task::{Context, Poll},
};

use adit::{
    io::BoxedIo,
    relay::client::{Dial, Purpose},
};
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;

#[tokio::test]
async fn two_hundred_streams_do_not_mix_and_both_directions_end_alone() {
    let (relay, drain) = (Relay::start(|_| {}).await, Drain::new());
    let (local, _) = echo().await;
    let (mut rx, _running) = start(relay.client(local, 0), &drain);
    let public = opened(&mut rx).await;
    let streams = (0..200u32).map(|number| async move {
        let mut stream = TcpStream::connect(public).await.unwrap();
        let sent: Vec<u8> = (0..20_000u32).flat_map(|at| (at.wrapping_mul(number + 1)).to_be_bytes()).collect();
        let wanted = Sha256::digest(&sent);
        let (mut read, mut write) = stream.split();
        let writing = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        let (_, read) = tokio::join!(writing, read.read_to_end(&mut back));
        read.unwrap();
        assert_eq!(Sha256::digest(&back), wanted, "stream {number}");
    });
    timeout(2 * PATIENCE, futures::future::join_all(streams)).await.expect("in time");
    eventually("nothing is left", || async { relay.server.snapshot()[0].streams == 0 }).await;
    drain.finish(Duration::from_secs(5)).await;
    eventually("a clean goodbye frees the port", || async { relay.server.snapshot().is_empty() }).await;
}

#[tokio::test]
async fn a_service_that_is_down_fails_each_visitor_and_no_tunnel() {
    let (relay, drain) = (Relay::start(|_| {}).await, Drain::new());
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (mut rx, _running) = start(relay.client(closed.port(), 0), &drain);
    let public = opened(&mut rx).await;
    for _ in 0..3 {
        let mut visitor = TcpStream::connect(public).await.unwrap();
        let error = timeout(PATIENCE, visitor.read_u8()).await.expect("soon").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert_eq!(relay.server.snapshot().len(), 1);
}

/// Dialler that counts connections for visitors, and can cut those that are open.
struct Watched {
    inner: Arc<dyn Dial>,
    count: AtomicUsize,
    is_cut: Mutex<Arc<AtomicBool>>,
}

impl Watched {
    /// Wraps the dialler of a client's options.
    fn between(options: &mut client::Options) -> Arc<Self> {
        let watched = Self { inner: options.dial.clone(), count: AtomicUsize::new(0), is_cut: Mutex::default() };
        let watched = Arc::new(watched);
        options.dial = watched.clone();
        watched
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn cut(&self) {
        std::mem::take(&mut *self.is_cut.lock().unwrap()).store(true, Ordering::Relaxed);
    }
}

/// Starts a client with watched connections. It runs until the last value of the result is dropped.
async fn watch(relay: &Relay, local: u16, drain: &Drain) -> (SocketAddr, Arc<Watched>, impl Sized) {
    let mut options = relay.client(local, 0);
    let watched = Watched::between(&mut options);
    let (mut rx, running) = start(options, drain);
    (opened(&mut rx).await, watched, (rx, running))
}

impl Dial for Watched {
    fn dial(&self, purpose: Purpose) -> BoxFuture<'_, io::Result<BoxedIo>> {
        Box::pin(async move {
            let inner = self.inner.dial(purpose).await?;
            if purpose == Purpose::Control {
                return Ok(inner);
            }
            self.count.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Cuttable { inner, is_cut: self.is_cut.lock().unwrap().clone() }) as BoxedIo)
        })
    }

    fn name(&self) -> String {
        self.inner.name()
    }

    fn host(&self) -> String {
        self.inner.host()
    }
}

/// A connection that, once cut, receives nothing more and discards what is sent.
struct Cuttable {
    inner: BoxedIo,
    is_cut: Arc<AtomicBool>,
}

impl Cuttable {
    fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }
}

impl AsyncRead for Cuttable {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if self.is_cut() {
            buf.set_filled(before);
            return Poll::Pending;
        }
        polled
    }
}

impl adit::io::Io for Cuttable {}

impl AsyncWrite for Cuttable {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.is_cut() {
            true => Poll::Ready(Ok(buf.len())),
            false => Pin::new(&mut self.inner).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Sends a text, ends the direction, and returns the answer.
async fn visit(public: SocketAddr, text: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(public).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let mut back = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut back)).await.expect("in time")?;
    Ok(back)
}

#[tokio::test]
async fn a_visitor_gets_the_connection_that_the_one_before_him_has_left() {
    let (relay, drain) = (Relay::start(|_| {}).await, Drain::new());
    let (local, services) = echo().await;
    let (public, watched, _running) = watch(&relay, local, &drain).await;
    let nobody = || async { relay.server.snapshot()[0].streams == 0 };
    for number in 0..20 {
        let text = format!("visitor {number}");
        assert_eq!(visit(public, &text).await.unwrap(), text);
        eventually("he is gone", nobody).await;
    }
    // The visitor's old connection and a spare one; more if opening one takes long.
    let before = watched.count();
    assert!((2..10).contains(&before), "{before}");
    assert_eq!(services.load(Ordering::Relaxed), 20, "the service sees each of them");

    // A reset connection is not used again.
    let mut rude = TcpStream::connect(public).await.unwrap();
    rude.write_all(b"half a ques").await.unwrap();
    rude.read_exact(&mut [0; 4]).await.unwrap();
    rude.set_zero_linger().unwrap();
    drop(rude);
    eventually("he is gone", nobody).await;
    assert_eq!(visit(public, "polite").await.unwrap(), "polite");
    eventually("another is ready instead", || async { watched.count() >= 3 }).await;

    // After a connection was lost without a FIN, the next visitor waits a second, but loses no bytes.
    eventually("he is gone", nobody).await;
    let before = watched.count();
    watched.cut();
    assert_eq!(visit(public, "patient").await.unwrap(), "patient");
    assert!(watched.count() > before, "a lost connection is replaced");
}

#[tokio::test]
async fn a_visitor_beside_others_finds_a_connection_that_is_ready() {
    let (relay, drain) = (Relay::start(|_| {}).await, Drain::new());
    let (local, services) = echo().await;
    let (public, watched, _running) = watch(&relay, local, &drain).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(watched.count(), 0, "none where nobody has come");
    let mut visitors = Vec::new();
    for number in 1..=5 {
        let mut visitor = TcpStream::connect(public).await.unwrap();
        visitor.write_all(b"a").await.unwrap();
        timeout(PATIENCE, visitor.read_u8()).await.expect("in time").unwrap();
        visitors.push(visitor);
        // Each visitor takes the spare connection, and a new one is opened.
        eventually("one more is ready", || async { watched.count() > number }).await;
        assert_eq!(services.load(Ordering::Relaxed), number, "the service sees visitors alone");
    }
    drop(visitors);
    drain.finish(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_service_that_comes_and_goes_is_found_again_on_the_same_connection() {
    let (relay, drain) = (Relay::start(|_| {}).await, Drain::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = listener.local_addr().unwrap();
    let serve = |listener: TcpListener| async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(listener);
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
    };
    let (public, watched, _running) = watch(&relay, local.port(), &drain).await;
    let nobody = || async { relay.server.snapshot()[0].streams == 0 };

    tokio::join!(serve(listener), async { assert_eq!(visit(public, "first").await.unwrap(), "first") });
    eventually("he is gone", nobody).await;
    assert_eq!(visit(public, "nobody there").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let listener = TcpListener::bind(local).await.unwrap();
    tokio::join!(serve(listener), async { assert_eq!(visit(public, "again").await.unwrap(), "again") });
    assert!(watched.count() < 5, "{}: one, and one that is ready", watched.count());
}

#[tokio::test]
async fn a_service_that_ends_first_gets_what_its_visitor_still_sends() {
    let (relay, drain) = (Relay::start(|_| {}).await, Drain::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut rx, _running) = start(relay.client(listener.local_addr().unwrap().port(), 0), &drain);
    let public = opened(&mut rx).await;
    let serving = async {
        let (mut service, _) = listener.accept().await.unwrap();
        service.write_all(b"go on").await.unwrap();
        service.shutdown().await.unwrap();
        let mut upload = Vec::new();
        timeout(PATIENCE, service.read_to_end(&mut upload)).await.expect("in time").unwrap();
        upload
    };
    let visiting = async {
        let mut visitor = TcpStream::connect(public).await.unwrap();
        let mut greeting = String::new();
        visitor.read_to_string(&mut greeting).await.unwrap();
        assert_eq!(greeting, "go on");
        let upload: Vec<u8> = (0..1_000_000u32).map(|number| (number * 31 % 251) as u8).collect();
        visitor.write_all(&upload).await.unwrap();
        visitor.shutdown().await.unwrap();
        upload
    };
    let (received, sent) = tokio::join!(serving, visiting);
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}

#[tokio::test]
async fn a_burst_of_a_thousand_visitors_waits_and_is_answered() {
    let (relay, drain) = (Relay::start(|_| {}).await, Drain::new());
    let (local, _) = echo().await;
    let (mut rx, _running) = start(relay.client(local, 0), &drain);
    let public = opened(&mut rx).await;
    let visitors: Vec<_> = (0..1000)
        .map(|number| tokio::spawn(async move { visit(public, &format!("visitor {number}")).await }))
        .collect();
    let mut answered = 0;
    for (number, visitor) in visitors.into_iter().enumerate() {
        let answer = timeout(PATIENCE * 2, visitor).await.expect("in time").unwrap();
        answered += usize::from(answer.is_ok_and(|text| text == format!("visitor {number}")));
    }
    assert_eq!(answered, 1000);
}
