//! A path with a round-trip time, a rate and losses, for every connection through it.
//!
//! The kernel's connections on loopback do not show how TCP behaves on a long path, so the link simulates it. A handshake takes a
//! round trip. At first a sender has ten segments in flight (RFC 6928), then one more for each acknowledged one. A lost segment
//! arrives a round trip later, delays all bytes behind it, and reduces the window to 0.7 of its size (RFC 9438). From then on the
//! window grows by a segment per round trip. After a pause it starts again (RFC 5681, section 4.1). Kernels are assumed to allow
//! windows of [`LARGEST_WINDOW`].

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

const SEGMENT: usize = 1448;
const FIRST_WINDOW: usize = 10 * SEGMENT;
const LARGEST_WINDOW: usize = 32 << 20;

/// After a pause of one retransmission timeout, kernels start again with the first window.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);

/// Length of the router's queue if the link has a rate but no round-trip time.
const SHORTEST_QUEUE: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    pub round_trip: Duration,
    /// Bytes per second in each direction, shared by all connections. `None`: no limit.
    pub rate: Option<f64>,
    /// Share of segments that are lost.
    pub loss: f64,
}

impl Link {
    pub fn is_there(&self) -> bool {
        self.round_trip > Duration::ZERO || self.rate.is_some() || self.loss > 0.0
    }

    /// Returns an address that forwards to `target` through the link. A thread serves it until the process ends.
    pub fn to(self, target: SocketAddr, shared: &Arc<Shared>) -> io::Result<SocketAddr> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = shared.clone();
        let serve = move || -> io::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener)?;
                loop {
                    let (near, _) = listener.accept().await?;
                    tokio::spawn(self.carry(near, target, shared.clone()));
                }
            })
        };
        std::thread::spawn(move || serve().inspect_err(|error| eprintln!("the link ended: {error}")));
        Ok(address)
    }

    async fn carry(self, near: TcpStream, target: SocketAddr, shared: Arc<Shared>) -> io::Result<()> {
        near.set_nodelay(true)?;
        // The TCP handshake.
        sleep(self.round_trip).await;
        let far = TcpStream::connect(target).await?;
        far.set_nodelay(true)?;
        let (near_read, near_write) = near.into_split();
        let (far_read, far_write) = far.into_split();
        tokio::join!(self.pass(near_read, far_write, &shared.up), self.pass(far_read, near_write, &shared.down));
        Ok(())
    }

    /// Carries one direction of a connection until its end.
    async fn pass(self, from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: &Direction) {
        let (queue_tx, mut queue) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
        let sending = self.send(from, direction, queue_tx);
        let arriving = async move {
            while let Some((due, bytes)) = queue.recv().await {
                sleep_until(due).await;
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(sending, arriving);
    }

    async fn send(
        self,
        mut from: OwnedReadHalf,
        direction: &Direction,
        queue: mpsc::UnboundedSender<(Instant, Vec<u8>)>,
    ) {
        let mut sender = Sender::new(self.round_trip);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let room = match sender.room(Instant::now()) {
                Ok(room) => room.min(buffer.len()),
                Err(until) => {
                    sleep_until(until).await;
                    continue;
                }
            };
            let Ok(count @ 1..) = from.read(&mut buffer[..room]).await else { return };
            let now = Instant::now();
            sender.restart(now);
            let leaves = direction.reserve(count, self.rate, now);
            let is_lost = direction.loses(count, self.loss);
            let due = sender.sent(count, leaves, is_lost);
            if queue.send((due, buffer[..count].to_vec())).is_err() {
                return;
            }
            // The queue of a full link holds as much as the link carries in a round trip.
            let queue_time = self.round_trip.max(SHORTEST_QUEUE);
            if leaves > now + queue_time {
                sleep_until(leaves - queue_time).await;
            }
        }
    }
}

/// State that all connections through a link share.
#[derive(Default)]
pub struct Shared {
    up: Direction,
    down: Direction,
}

#[derive(Default)]
struct Direction {
    /// Time at which the link has sent all bytes so far.
    free_at: Mutex<Option<Instant>>,
    random: Mutex<u64>,
}

impl Direction {
    /// Returns the time at which these bytes have left.
    fn reserve(&self, count: usize, rate: Option<f64>, now: Instant) -> Instant {
        let Some(rate) = rate else { return now };
        let mut free_at = self.free_at.lock().expect("no panic while the lock is held");
        let leaves = free_at.map_or(now, |at| at.max(now)) + Duration::from_secs_f64(count as f64 / rate);
        *free_at = Some(leaves);
        leaves
    }

    /// Returns whether a segment of these bytes is lost. The sequence is the same in each run.
    fn loses(&self, count: usize, loss: f64) -> bool {
        if loss <= 0.0 {
            return false;
        }
        let mut random = self.random.lock().expect("no panic while the lock is held");
        // SplitMix64 (Steele, Lea, Flood 2014).
        *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (*random ^ (*random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let drawn = (mixed ^ (mixed >> 31)) as f64 / u64::MAX as f64;
        drawn < 1.0 - (1.0 - loss).powi(count.div_ceil(SEGMENT) as i32)
    }
}

/// The sender of one direction, as in TCP.
struct Sender {
    round_trip: Duration,
    window: usize,
    /// Above this size, the window grows by a segment per round trip.
    threshold: usize,
    /// Times of acknowledgement, each with the number of bytes.
    in_flight: VecDeque<(Instant, usize)>,
    bytes: usize,
    last_due: Option<Instant>,
}

impl Sender {
    fn new(round_trip: Duration) -> Self {
        Self {
            round_trip,
            window: FIRST_WINDOW,
            threshold: LARGEST_WINDOW,
            in_flight: VecDeque::new(),
            bytes: 0,
            last_due: None,
        }
    }

    /// Returns the number of bytes that may be sent now, or the time at which more may be.
    fn room(&mut self, now: Instant) -> Result<usize, Instant> {
        while let Some((_, count)) = self.in_flight.front().copied().filter(|(at, _)| *at <= now) {
            self.in_flight.pop_front();
            self.bytes -= count;
            self.window += if self.window < self.threshold { count } else { SEGMENT * count / self.window };
            self.window = self.window.min(LARGEST_WINDOW);
        }
        match (self.window.saturating_sub(self.bytes), self.in_flight.front()) {
            (0, Some((at, _))) => Err(*at),
            (room, _) => Ok(room.max(1)),
        }
    }

    fn restart(&mut self, now: Instant) {
        let _ = self.room(now);
        let pause = SHORTEST_PAUSE.max(self.round_trip * 2);
        if self.in_flight.is_empty() && self.last_due.is_some_and(|at| at + self.round_trip / 2 + pause < now) {
            self.window = self.window.min(FIRST_WINDOW);
        }
    }

    /// Records sent bytes, and returns the time of their arrival.
    fn sent(&mut self, count: usize, leaves: Instant, is_lost: bool) -> Instant {
        let mut due = leaves + self.round_trip / 2;
        if is_lost {
            due += self.round_trip;
            self.window = (self.window * 7 / 10).max(2 * SEGMENT);
            self.threshold = self.window;
        }
        let due = self.last_due.map_or(due, |last| last.max(due));
        self.last_due = Some(due);
        self.bytes += count;
        self.in_flight.push_back((due + self.round_trip / 2, count));
        due
    }
}
