//! Shares one dial between all clients that wait for a connection to a pod. They also share its failure.

use std::{future::Future, time::Duration};

use tokio::{
    sync::Mutex,
    task::{JoinError, JoinSet},
    time::Instant,
};

use crate::backend::StreamFault;

/// Minimum time between dials to a node that restarts, for all clients together.
const PAUSE: Duration = Duration::from_millis(100);

/// The lock of the dial in progress.
#[derive(Default)]
pub struct Dialling {
    turn: Mutex<Turn>,
}

#[derive(Default)]
struct Turn {
    /// The last failure, unless a later dial succeeded.
    failure: Option<Failure>,
    /// The shared dial, a task of its own: it goes on if all callers leave, and ends with this object.
    running: JoinSet<Option<Failure>>,
}

struct Failure {
    at: Instant,
    fault: StreamFault,
}

impl Failure {
    fn of<T>(dialled: &Result<T, StreamFault>) -> Option<Self> {
        dialled.as_ref().err().map(|fault| Self { at: Instant::now(), fault: fault.clone() })
    }

    /// Returns whether a client that came at this time gets this failure without a dial of its own: it waited for the
    /// failed dial, or the cluster asks clients to wait.
    fn is_for(&self, came: Instant) -> bool {
        let pause = match &self.fault {
            StreamFault::Unavailable { retry_after, .. } => retry_after.unwrap_or_default().max(PAUSE),
            _ => Duration::ZERO,
        };
        came <= self.at || self.at.elapsed() < pause
    }
}

impl Dialling {
    /// Waits for its turn, and for the dial in progress or a new one. Then returns what `made` finds: the dial stores its
    /// connection there. `None`: another caller has it.
    ///
    /// # Errors
    /// The dial has failed: this one, or the one before it.
    pub async fn share<T>(
        &self,
        made: impl Fn() -> Option<T>,
        dial: impl Future<Output = Result<(), StreamFault>> + Send + 'static,
    ) -> Result<Option<T>, StreamFault> {
        let came = Instant::now();
        let mut turn = self.turn.lock().await;
        // A dial whose callers have left may have ended since.
        while let Some(ended) = turn.running.try_join_next() {
            turn.failure = failure_of(ended);
        }
        if let Some(made) = made() {
            return Ok(Some(made));
        }
        if turn.running.is_empty() {
            if let Some(failure) = turn.failure.as_ref().filter(|failure| failure.is_for(came)) {
                return Err(failure.fault.clone());
            }
            turn.running.spawn(async move { Failure::of(&dial.await) });
        }
        if let Some(ended) = turn.running.join_next().await {
            turn.failure = failure_of(ended);
        }
        match &turn.failure {
            Some(failure) => Err(failure.fault.clone()),
            None => Ok(made()),
        }
    }

    /// Dials concurrently, because each client needs a connection of its own. After a failure only one client dials,
    /// and the others wait for its result.
    ///
    /// # Errors
    /// Those of [`share`](Self::share).
    pub async fn beside<T>(&self, dial: impl Future<Output = Result<T, StreamFault>>) -> Result<T, StreamFault> {
        let came = Instant::now();
        let mut turn = self.turn.lock().await;
        if let Some(failure) = &turn.failure {
            if failure.is_for(came) {
                return Err(failure.fault.clone());
            }
            let dialled = dial.await;
            turn.failure = Failure::of(&dialled);
            return dialled;
        }
        drop(turn);
        let dialled = dial.await;
        if dialled.is_err() {
            self.turn.lock().await.failure = Failure::of(&dialled);
        }
        dialled
    }
}

fn failure_of(ended: Result<Option<Failure>, JoinError>) -> Option<Failure> {
    ended.unwrap_or_else(|error| {
        let fault = StreamFault::Lost { detail: format!("the dial was ended: {error}") };
        Some(Failure { at: Instant::now(), fault })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use futures::future::join_all;
    use tokio::time::{advance, sleep};

    use super::*;

    fn away(retry_after: Option<Duration>) -> StreamFault {
        StreamFault::Unavailable { detail: "503".to_owned(), retry_after }
    }

    /// Dials for several clients at once. Returns their results, and the number of dials.
    async fn dial(dialling: &Dialling, clients: usize, result: Result<(), StreamFault>) -> (Vec<bool>, usize) {
        let dials = Arc::new(AtomicUsize::new(0));
        let dial = || {
            let (dials, result) = (dials.clone(), result.clone());
            async move {
                dials.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_millis(7)).await;
                result
            }
        };
        let got = join_all((0..clients).map(|_| dialling.share(|| None::<()>, dial()))).await;
        (got.iter().map(Result::is_ok).collect(), dials.load(Ordering::SeqCst))
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_a_dial_share_its_failure() {
        let lost = StreamFault::Lost { detail: "no".to_owned() };
        for (fault, again) in [(lost, 1), (away(None), 0)] {
            let dialling = Dialling::default();
            assert_eq!(dial(&dialling, 50, Err(fault.clone())).await, (vec![false; 50], 1));
            advance(Duration::from_millis(1)).await;
            assert_eq!(dial(&dialling, 50, Err(fault.clone())).await, (vec![false; 50], again), "{fault}");
            advance(PAUSE).await;
            assert_eq!(dial(&dialling, 1, Ok(())).await, (vec![true], 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cluster_that_asks_to_be_left_alone_is() {
        let dialling = Dialling::default();
        assert_eq!(dial(&dialling, 1, Err(away(Some(Duration::from_secs(3))))).await.1, 1);
        advance(Duration::from_millis(2900)).await;
        assert_eq!(dial(&dialling, 3, Ok(())).await, (vec![false; 3], 0));
        advance(Duration::from_millis(200)).await;
        assert_eq!(dial(&dialling, 1, Ok(())).await, (vec![true], 1));
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_for_a_dial_share_what_it_made() {
        let dialling = Dialling::default();
        let made = Arc::new(AtomicUsize::new(0));
        let share = || {
            let (found, making) = (made.clone(), made.clone());
            let found = move || (found.load(Ordering::SeqCst) > 0).then_some(());
            dialling.share(found, async move {
                sleep(Duration::from_millis(7)).await;
                making.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
        };
        assert!(join_all((0..50).map(|_| share())).await.iter().all(|got| matches!(got, Ok(Some(())))));
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dial_goes_on_without_the_one_that_started_it() {
        for result in [Ok(()), Err(away(None))] {
            let dialling = Dialling::default();
            let first = tokio::time::timeout(Duration::from_millis(3), dial(&dialling, 1, result.clone())).await;
            assert!(first.is_err());
            assert_eq!(dial(&dialling, 1, Ok(())).await, (vec![result.is_ok()], 0), "the next one waits for it");
            let first = tokio::time::timeout(Duration::from_millis(3), dial(&dialling, 1, result.clone())).await;
            assert!(first.is_err() || result.is_err());
            advance(PAUSE + Duration::from_secs(1)).await;
            assert_eq!(dial(&dialling, 1, Ok(())).await.0, [true], "an old failure does not count");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dials_beside_each_other_take_turns_after_a_failure() {
        let dialling = Dialling::default();
        let dials = AtomicUsize::new(0);
        let all = |result: Result<(), StreamFault>| {
            join_all((0..50).map(|_| {
                let result = result.clone();
                dialling.beside(async {
                    dials.fetch_add(1, Ordering::SeqCst);
                    sleep(Duration::from_millis(7)).await;
                    result
                })
            }))
        };
        all(Ok(())).await;
        assert_eq!(dials.swap(0, Ordering::SeqCst), 50);
        all(Err(away(None))).await;
        assert_eq!(dials.swap(0, Ordering::SeqCst), 50);
        advance(PAUSE).await;
        assert!(all(Err(away(None))).await.iter().all(Result::is_err));
        assert_eq!(dials.swap(0, Ordering::SeqCst), 1);
        advance(PAUSE).await;
        all(Ok(())).await;
        assert_eq!(dials.swap(0, Ordering::SeqCst), 50);
    }
}
