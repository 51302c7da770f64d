//! How many threads carry data, and the runtime that has them.

use std::{future::Future, io, num::NonZeroUsize, thread};

use tokio::runtime::{Builder, Runtime};

use super::report::CliError;

/// The most threads that adit takes of a laptop by itself: the API servers that it asks have more to do for each byte than it has.
const MOST_OF_A_LAPTOP: usize = 4;

/// Returns how many threads serve on a laptop where nobody says it.
pub fn of_laptop() -> usize {
    cores().min(MOST_OF_A_LAPTOP)
}

/// Returns how many threads serve a relay where nobody says it: it has its machine, or its share of one, for itself.
pub fn of_relay() -> usize {
    cores()
}

/// Returns how many processors this process may use, by its affinity and its cgroup.
fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Returns a runtime with this many threads for data. With one, everything runs on the thread of the caller, and no other
/// one is woken. With more, the caller's thread has the future that it waits for, so that the control part never waits behind data.
fn runtime(workers: usize) -> io::Result<Runtime> {
    match workers {
        0 | 1 => Builder::new_current_thread().enable_all().build(),
        _ => Builder::new_multi_thread().worker_threads(workers).enable_all().build(),
    }
}

/// Runs `main` to its end on so many threads, and waits for nothing else: a name that is being resolved, or a credential
/// plugin that ignores signals, blocks a thread for as long as it likes.
///
/// # Errors
/// The error of `main`, or the system gives no threads.
pub fn serve<T>(workers: usize, main: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
    let runtime = runtime(workers)?;
    let ended = runtime.block_on(main);
    runtime.shutdown_background();
    ended
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{channel, sync_channel},
        time::Duration,
    };

    use super::*;

    #[test]
    fn a_thread_that_blocks_does_not_hold_up_the_end() {
        for workers in [1, 3] {
            let (ended_tx, ended) = channel::<()>();
            let (tell_tx, told) = sync_channel(1);
            thread::spawn(move || {
                let main = serve(workers, async move {
                    tokio::task::spawn_blocking(move || ended.recv());
                    Ok(7)
                });
                tell_tx.send(main.ok())
            });
            assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(Some(7)));
            drop(ended_tx);
        }
    }

    #[test]
    fn a_runtime_has_the_threads_that_were_asked_for() {
        for workers in [1, 3] {
            let main = serve(workers, async { Ok(tokio::runtime::Handle::current().metrics().num_workers()) });
            assert_eq!(main.ok(), Some(workers));
        }
    }

    #[test]
    fn a_laptop_lends_a_few_cores_and_a_relay_has_all() {
        assert!((1..=MOST_OF_A_LAPTOP).contains(&of_laptop()));
        assert!(of_relay() >= of_laptop());
    }
}
