//! The open streams of a tunnel: its end ends all of them, whatever they wait for.
//!
//! A stream whose client does not read is not polled, so that it cannot notice the end of its tunnel by itself. The tunnel takes
//! it out of its cell instead, and with it what it keeps alive: its connection and its session.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll, Waker},
};

use super::stream::{Half, Stream};
use crate::backend::StreamFault;

/// Those of one tunnel.
#[derive(Default)]
pub(super) struct Streams(Mutex<Open>);

#[derive(Default)]
struct Open {
    last: u64,
    cells: HashMap<u64, Weak<Cell>>,
    /// The tunnel is over: what comes now ends at once.
    is_over: bool,
}

/// A stream, until its tunnel takes it away.
pub(super) struct Cell(Mutex<Held>);

struct Held {
    stream: Option<Stream>,
    /// Wakers of both halves, which may be in tasks of their own.
    waiting: [Option<Waker>; 2],
}

impl Streams {
    /// Takes a stream in, and returns its number and its cell.
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

    /// Ends all of them, and those to come.
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
    /// The stream's own, or that the tunnel has taken it away.
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

    /// Looks at the stream. None: its tunnel has taken it away.
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
