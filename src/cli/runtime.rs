//! Number of threads that carry data, and the runtime with them.

use std::{future::Future, io, num::NonZeroUsize, thread};

use tokio::runtime::{Builder, Runtime};

use super::report::CliError;

/// Maximum number of threads on a laptop. API servers need more time per byte than adit, so more threads would not help.
const MOST_OF_A_LAPTOP: usize = 4;

/// Returns the default number of threads on a laptop.
pub fn of_laptop() -> usize {
    cores().min(MOST_OF_A_LAPTOP)
}

/// Returns the default number of threads of a relay: it usually has its machine, or its share of one, for itself.
pub fn of_relay() -> usize {
    cores()
}

/// Returns the number of cores that this process may use, according to its affinity and cgroup.
fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Returns a runtime with this many threads for data. With one, everything runs on the caller's thread, so no thread has to be
/// woken. With more, the caller's thread runs only `main`, so that control never waits behind data.
fn runtime(workers: usize) -> io::Result<Runtime> {
    match workers {
        0 | 1 => Builder::new_current_thread().enable_all().build(),
        _ => Builder::new_multi_thread().worker_threads(workers).enable_all().build(),
    }
}

/// Runs `main` until its end, and does not wait for other tasks: a name look-up, or a credential plugin that ignores signals, may
/// block a thread for any time.
///
/// # Errors
/// The error of `main`, or the system cannot create threads.
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
