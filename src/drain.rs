//! Graceful shutdown: stop accepting, let work finish, then cut the rest.

use std::{future::Future, sync::Arc, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How long a [last task](Drain::spawn_last) may run after the cut: one request to the API server. With the grace of 10 s, the
/// process is gone within 10.5 s.
const LAST: Duration = Duration::from_millis(400);

/// Tells every task of the process to end, and waits for the tasks.
///
/// ```text
/// Open ----start()----> Draining ----cut(), or the grace of finish() is over----> Cut
/// ```
///
/// While Draining, tasks accept nothing new and finish their work. Cut drops the remaining tasks at their next await.
/// Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// Each task counts in this drain and in all its parents.
    trackers: Trackers,
    draining: CancellationToken,
    cut: CancellationToken,
}

/// Tasks of a drain, including those of its children.
#[derive(Clone, Debug, Default)]
struct Trackers {
    own: TaskTracker,
    parents: Arc<[TaskTracker]>,
}

impl Drain {
    /// Returns a drain in the state Open.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `task` until it ends or the cut drops it.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let cut = self.clone();
        self.track(task, async move { cut.was_cut().await });
    }

    /// Runs `task`, which cleans up after a task that has ended or was cut, until it ends or 400 ms after the cut.
    pub fn spawn_last<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let cut = self.clone();
        self.track(task, async move {
            cut.was_cut().await;
            tokio::time::sleep(LAST).await;
        });
    }

    fn track<F, E>(&self, task: F, end: E)
    where
        F: Future<Output = ()> + Send + 'static,
        E: Future<Output = ()> + Send + 'static,
    {
        let counted: Vec<_> = self.trackers.parents.iter().map(TaskTracker::token).collect();
        self.trackers.own.spawn(async move {
            let _counted = counted;
            tokio::select! {
                () = task => {}
                () = end => {}
            }
        });
    }

    /// Returns a drain that starts and cuts with this one, but can also be started, cut and waited for alone, so that a
    /// removed listener ends only its own connections. [`finish`](Self::finish) of this one waits for the tasks of
    /// both.
    pub fn child(&self) -> Self {
        let parents = self.trackers.parents.iter().chain([&self.trackers.own]).cloned().collect();
        let trackers = Trackers { own: TaskTracker::new(), parents };
        Self { trackers, draining: self.draining.child_token(), cut: self.cut.child_token() }
    }

    /// Tells every task to finish its work and accept nothing new.
    pub fn start(&self) {
        self.draining.cancel();
    }

    /// Waits until [`start`](Self::start) is called.
    pub async fn started(&self) {
        self.draining.cancelled().await;
    }

    /// Returns whether [`start`](Self::start) was called.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits until the cut.
    pub async fn was_cut(&self) {
        self.cut.cancelled().await;
    }

    /// Drops every tracked task at its next await.
    pub fn cut(&self) {
        self.draining.cancel();
        self.cut.cancel();
    }

    /// Starts the drain, waits up to `grace` for the tracked tasks to end, then cuts the rest.
    ///
    /// Returns the number of tasks that were cut.
    pub async fn finish(&self, grace: Duration) -> usize {
        self.start();
        self.trackers.own.close();
        if tokio::time::timeout(grace, self.trackers.own.wait()).await.is_ok() {
            return 0;
        }
        let left = self.trackers.own.len();
        self.cut();
        self.trackers.own.wait().await;
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tasks_that_end_within_the_grace_are_not_cut() {
        let drain = Drain::new();
        drain.spawn(tokio::time::sleep(Duration::from_secs(3)));
        assert_eq!(drain.finish(Duration::from_secs(10)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_that_outlast_the_grace_are_cut_and_counted() {
        let drain = Drain::new();
        drain.spawn(std::future::pending());
        drain.spawn(std::future::pending());
        assert_eq!(drain.finish(Duration::from_secs(10)).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_last_task_outlives_the_cut_but_not_for_long() {
        let (drain, (ended_tx, mut ended)) = (Drain::new(), tokio::sync::mpsc::unbounded_channel());
        for time in [LAST / 2, LAST * 2] {
            let (of_last, ended_tx) = (drain.clone(), ended_tx.clone());
            drain.spawn_last(async move {
                of_last.was_cut().await;
                tokio::time::sleep(time).await;
                ended_tx.send(time).unwrap();
            });
        }
        assert_eq!(drain.finish(Duration::from_secs(10)).await, 2);
        assert_eq!(ended.try_recv().ok(), Some(LAST / 2));
        assert!(ended.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn tasks_of_children_have_the_grace_and_are_counted() {
        let parent = Drain::new();
        let (child, grandchild) = (parent.child(), parent.child().child());
        let began = tokio::time::Instant::now();
        child.spawn(tokio::time::sleep(Duration::from_secs(3)));
        assert_eq!(parent.finish(Duration::from_secs(10)).await, 0);
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        child.spawn(std::future::pending());
        grandchild.spawn(std::future::pending());
        parent.spawn(std::future::pending());
        assert_eq!(parent.finish(Duration::from_secs(10)).await, 3);
        assert_eq!(child.finish(Duration::from_secs(10)).await, 0);
    }

    #[tokio::test]
    async fn a_child_ends_with_its_parent_but_not_the_reverse() {
        let parent = Drain::new();
        let child = parent.child();
        child.start();
        assert!(!parent.is_draining());
        let other = parent.child();
        parent.start();
        assert!(other.is_draining());
    }
}
