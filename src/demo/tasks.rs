//! Tasks that end together: those of the whole demo, of a connection, or of a container.

use hyper::rt::Executor;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A group of tasks. Clones share it. Ending it drops all its tasks.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    end: CancellationToken,
}

impl Tasks {
    /// Runs `task` until it or the group ends.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let end = self.end.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = task => {}
                () = end.cancelled() => {}
            }
        });
    }

    /// Returns a group that ends with this one, or earlier.
    pub fn child(&self) -> Self {
        Self { end: self.end.child_token() }
    }

    pub fn end(&self) {
        self.end.cancel();
    }

    /// Waits until the group has ended.
    pub async fn ended(&self) {
        self.end.cancelled().await;
    }

    pub fn has_ended(&self) -> bool {
        self.end.is_cancelled()
    }

    /// Returns a guard that ends the group when dropped.
    pub fn guard(&self) -> DropGuard {
        self.end.clone().drop_guard()
    }
}

/// Lets hyper spawn its tasks in the group: one per stream of an HTTP/2 connection.
impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(async {
            task.await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_group_ends_with_its_parent() {
        let (ended_tx, ended) = tokio::sync::oneshot::channel::<()>();
        let all = Tasks::default();
        let guard = all.guard();
        all.child().spawn(async move {
            let _held = ended_tx;
            std::future::pending::<()>().await;
        });
        drop(guard);
        assert!(ended.await.is_err(), "the task was dropped");
        assert!(all.has_ended());
    }
}
