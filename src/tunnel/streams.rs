//! The open streams of a tunnel. When the tunnel ends, it drops all of them, even those that nothing polls.
//!
//! If a client does not read, nothing polls its stream, and the stream cannot notice that its tunnel has ended. So the
//! tunnel takes the stream out of its cell and drops it, and with it the connection and the session that it keeps
//! alive.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll, Waker},
};

use super::stream::{Half, Stream};
use crate::backend::StreamFault;

/// Open streams of one tunnel.
#[derive(Default)]
pub(super) struct Streams(Mutex<Open>);

#[derive(Default)]
struct Open {
    last: u64,
    cells: HashMap<u64, Weak<Cell>>,
    /// The tunnel is over: new streams end at once.
    is_over: bool,
}

/// A stream, until its tunnel drops it.
pub(super) struct Cell(Mutex<Held>);

struct Held {
    stream: Option<Stream>,
    /// Wakers of the read half and the write half, which may be in different tasks.
    waiting: [Option<Waker>; 2],
}

impl Streams {
    /// Adds a stream, and returns its number and its cell.
    pub fn add(&self, stream: Stream) -> (u64, Arc<Cell>) {
        let mut open = self.lock();
        let stream = (!open.is_over).then_some(stream);
        let cell = Arc::new(Cell(Mutex::new(Held { stream, waiting: [None, None] })));
        open.last += 1;
        let number = open.last;
        open.cells.insert(number, Arc::downgrade(&cell));
        (number, cell)
    }

    pub fn remove(&self, number: u64) {
        self.lock().cells.remove(&number);
    }

    pub fn is_empty(&self) -> bool {
        self.lock().cells.is_empty()
    }

    /// Ends all streams, including any that are added later.
    pub fn end(&self) {
        let cells = {
            let mut open = self.lock();
            open.is_over = true;
            std::mem::take(&mut open.cells)
        };
        cells.into_values().filter_map(|cell| cell.upgrade()).for_each(|cell| cell.end());
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().expect("no panic while the lock is held")
    }
}

impl Cell {
    /// Polls the stream for one of its halves.
    ///
    /// # Errors
    /// The stream's own error, or that the tunnel is over.
    pub fn poll<T>(
        &self,
        cx: &mut Context<'_>,
        half: Half,
        poll: impl FnOnce(&mut Stream, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut held = self.lock();
        let Some(stream) = &mut held.stream else {
            return Poll::Ready(Err(StreamFault::Lost { detail: "the tunnel was stopped".to_owned() }.into()));
        };
        let polled = poll(stream, cx);
        if stream.has_moved() {
            held.waiting.iter_mut().filter_map(Option::take).for_each(Waker::wake);
        }
        let waiting = &mut held.waiting[half as usize];
        if polled.is_pending() && !waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
        polled
    }

    /// Calls `look` with the stream. `None`: the tunnel is over.
    pub fn with<T>(&self, look: impl FnOnce(&mut Stream) -> T) -> Option<T> {
        self.lock().stream.as_mut().map(look)
    }

    fn end(&self) {
        let (stream, waiting) = {
            let mut held = self.lock();
            (held.stream.take(), std::mem::take(&mut held.waiting))
        };
        drop(stream);
        waiting.into_iter().flatten().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().expect("no panic while the lock is held")
    }
}
