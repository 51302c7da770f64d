//! A spare connection to an API server, dialled ahead of need as long as the context is in use.
//!
//! ```text
//!   nothing --used--> dials --> kept --taken--> dials ...
//!      ^                          |  ^  |
//!      |                          |  +--+ another one each LIFETIME
//!      +---- not used for IN_USE -+
//! ```

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, ReadBuf},
    select,
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

use crate::io::BoxedIo;

/// Lifetime of a spare connection. API servers close a connection without a request after 32 s (`ReadHeaderTimeout` in
/// k8s.io/apiserver).
const LIFETIME: Duration = Duration::from_secs(25);

/// How long a context counts as in use after its last upgrade or look-up. After that, a dial on demand costs less than
/// unused handshakes.
const IN_USE: Duration = Duration::from_secs(120);

/// Pause before a dial, so that callers with more upgrades come first.
const PAUSE: Duration = Duration::from_millis(200);

/// A larger difference between the two clocks means that the machine has slept, and its connections are lost.
const SLEPT: Duration = Duration::from_secs(2);

/// Dials a connection. `None`: the dial failed, or would need a sign-in.
type Dial<K> = Box<dyn Fn() -> BoxFuture<'static, Option<(K, BoxedIo)>> + Send + Sync>;

/// At most one unused connection. `K`: identity of its user.
pub struct Spare<K> {
    shared: Arc<Shared<K>>,
    keeping: Mutex<Option<JoinHandle<()>>>,
}

struct Shared<K> {
    dial: Dial<K>,
    state: Mutex<State<K>>,
    taken: Notify,
}

struct State<K> {
    kept: Option<Kept<K>>,
    used: Instant,
}

struct Kept<K> {
    by: K,
    io: BoxedIo,
    since: Instant,
    since_by_clock: SystemTime,
}

impl<K: Send + 'static> Spare<K> {
    pub fn new(dial: Dial<K>) -> Self {
        let state = Mutex::new(State { kept: None, used: Instant::now() });
        Self { shared: Arc::new(Shared { dial, state, taken: Notify::new() }), keeping: Mutex::default() }
    }

    /// Records that the context is in use. If there is no spare connection, dials one in the background.
    pub fn used(&self) {
        self.shared.lock().used = Instant::now();
        let mut keeping = self.keeping.lock().expect("no panic while the lock is held");
        if keeping.as_ref().is_none_or(JoinHandle::is_finished) {
            *keeping = Some(tokio::spawn(self.shared.clone().keep()));
        }
    }

    /// Takes the spare connection if it is still open and its identity `fits`.
    pub fn take(&self, fits: impl FnOnce(&K) -> bool) -> Option<BoxedIo> {
        let mut kept = self.shared.lock().kept.take()?;
        self.shared.taken.notify_one();
        (fits(&kept.by) && kept.is_usable()).then_some(kept.io)
    }
}

impl<K> Drop for Spare<K> {
    fn drop(&mut self) {
        if let Some(task) = self.keeping.lock().expect("no panic while the lock is held").take() {
            task.abort();
        }
    }
}

impl<K> Shared<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().expect("no panic while the lock is held")
    }

    /// Keeps a spare connection until the context is out of use, or a dial fails.
    async fn keep(self: Arc<Self>) {
        loop {
            sleep(PAUSE).await;
            if self.lock().used.elapsed() >= IN_USE {
                return;
            }
            let Some((by, io)) = (self.dial)().await else { return };
            let since = Instant::now();
            self.lock().kept = Some(Kept { by, io, since, since_by_clock: SystemTime::now() });
            select! {
                () = self.taken.notified() => continue,
                () = sleep_until(since + LIFETIME) => self.lock().kept = None,
                // If the server closes the spare connection, there is no new one until the next use.
                () = self.closed() => {
                    self.lock().kept = None;
                    return;
                }
            }
        }
    }

    /// Waits until the server has closed the spare connection.
    async fn closed(&self) {
        poll_fn(|cx| match &mut self.lock().kept {
            Some(kept) => kept.poll_closed(cx),
            None => Poll::Pending,
        })
        .await;
    }
}

impl<K> Kept<K> {
    fn is_usable(&mut self) -> bool {
        let slept = self.since_by_clock.elapsed().is_ok_and(|time| time > self.since.elapsed() + SLEPT);
        !slept
            && self.since.elapsed() < LIFETIME
            && self.poll_closed(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Polls for the end. A server sends nothing before a request, so any byte means that it closes.
    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut byte = [0];
        Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut byte)).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use tokio::{io::DuplexStream, time::advance};

    use super::*;

    /// A server, and a spare connection to it.
    #[derive(Default)]
    struct Server {
        dials: AtomicUsize,
        needs_sign_in: AtomicBool,
        ends: Mutex<Vec<DuplexStream>>,
    }

    impl Server {
        fn spare(self: &Arc<Self>) -> Spare<usize> {
            let server = self.clone();
            Spare::new(Box::new(move || {
                let server = server.clone();
                Box::pin(async move {
                    if server.needs_sign_in.load(Ordering::SeqCst) {
                        return None;
                    }
                    let (near, far) = tokio::io::duplex(64);
                    server.ends.lock().unwrap().push(far);
                    let number = server.dials.fetch_add(1, Ordering::SeqCst);
                    Some((number, Box::new(near) as BoxedIo))
                })
            }))
        }

        fn dials(&self) -> usize {
            self.dials.load(Ordering::SeqCst)
        }
    }

    async fn pass(time: Duration) {
        for _ in 0..time.as_millis() / 100 {
            advance(Duration::from_millis(100)).await;
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_is_kept_and_replaced_while_the_context_is_in_use() {
        let server = Arc::new(Server::default());
        let spare = server.spare();
        assert!(spare.take(|_| true).is_none());
        pass(IN_USE).await;
        assert_eq!(server.dials(), 0, "none for a context that is not used");
        (0..3).for_each(|_| spare.used());
        pass(PAUSE * 2).await;
        assert_eq!(server.dials(), 1);
        assert!(spare.take(|by| *by == 0).is_some());
        assert!(spare.take(|_| true).is_none(), "once");
        pass(PAUSE * 2).await;
        assert_eq!(server.dials(), 2, "another takes its place");
        pass(LIFETIME + PAUSE * 2).await;
        assert_eq!(server.dials(), 3, "servers close what says nothing for long");
        assert!(spare.take(|by| *by == 2).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_left_once_the_context_is_not_used() {
        let server = Arc::new(Server::default());
        let spare = server.spare();
        spare.used();
        pass(IN_USE + LIFETIME + PAUSE * 2).await;
        let dials = server.dials();
        assert!(dials <= 6, "{dials}");
        assert!(spare.take(|_| true).is_none());
        pass(IN_USE).await;
        assert_eq!(server.dials(), dials);
        spare.used();
        pass(PAUSE * 2).await;
        assert!(spare.take(|_| true).is_some(), "used again");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_signs_in_for_one() {
        let server = Arc::new(Server::default());
        let spare = server.spare();
        server.needs_sign_in.store(true, Ordering::SeqCst);
        spare.used();
        pass(PAUSE * 2).await;
        server.needs_sign_in.store(false, Ordering::SeqCst);
        pass(LIFETIME).await;
        assert_eq!(server.dials(), 0, "it is not tried again by itself");
        spare.used();
        pass(PAUSE * 2).await;
        assert_eq!(server.dials(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_closed_or_is_another_users_is_not_given_out() {
        let server = Arc::new(Server::default());
        let spare = server.spare();
        spare.used();
        pass(PAUSE * 2).await;
        server.ends.lock().unwrap().clear();
        assert!(spare.take(|_| true).is_none(), "closed just now");
        pass(PAUSE * 2).await;
        server.ends.lock().unwrap().clear();
        pass(LIFETIME).await;
        assert_eq!(server.dials(), 2, "a server that closes them is left alone");
        spare.used();
        pass(PAUSE * 2).await;
        assert!(spare.take(|_| false).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_with_its_owner() {
        let server = Arc::new(Server::default());
        let spare = server.spare();
        spare.used();
        pass(PAUSE * 2).await;
        drop(spare);
        pass(PAUSE).await;
        assert!(server.ends.lock().unwrap().iter_mut().all(|end| {
            let mut byte = [0];
            let mut byte = ReadBuf::new(&mut byte);
            Pin::new(end).poll_read(&mut Context::from_waker(Waker::noop()), &mut byte).is_ready()
        }));
    }
}
