//! Requests an upgrade with one transport after the other, as `choice` decides, and remembers the one that works.

use std::time::Duration;

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    select,
    time::{Instant, sleep_until, timeout},
};
use tracing::debug;

use super::{
    Dialled,
    choice::{self, Next, Transport, Verdict},
    dial_as,
    request::{Answer, Asked, Refusal},
    spare,
};
use crate::{
    io::BoxedIo,
    k8s::{ClusterError, client::Cluster, credential::Credential, transports::Memory},
};

/// How long to wait for late answers of attempts after another one has won.
const LATE: Duration = Duration::from_secs(10);

/// An answered attempt.
type Answered<T> = (T, hyper::Result<Answer>);

/// Reasons why no transport worked.
pub(super) enum Failure<T> {
    /// The connection failed.
    Cluster(ClusterError),
    Refused(T, Refusal),
    /// The connection was closed, or the answer is not HTTP.
    Broken(hyper::Error),
    /// No answer.
    Silent,
}

/// A connection after its upgrade, with the protocol that the server chose.
pub(super) struct Switched<T> {
    pub transport: T,
    pub protocol: String,
    pub io: BoxedIo,
}

/// Attempts of one upgrade.
struct Attempts<T> {
    made: Vec<(T, Verdict)>,
    asked: FuturesUnordered<BoxFuture<'static, Answered<T>>>,
    failures: Vec<(T, Failure<T>)>,
    switched: Option<Switched<T>>,
}

impl<T: Transport> Attempts<T> {
    fn new() -> Self {
        Self { made: Vec::new(), asked: FuturesUnordered::new(), failures: Vec::new(), switched: None }
    }

    fn ask(&mut self, transport: T, request: Asked, io: BoxedIo) {
        let sending = request.send(io);
        self.asked.push(Box::pin(async move { (transport, sending.await) }));
        self.made.push((transport, Verdict::Asked));
    }

    /// Marks the newest attempt as silent after its time.
    fn lose_patience(&mut self) {
        let asked = self.made.iter_mut().filter(|(_, verdict)| *verdict == Verdict::Asked);
        asked.for_each(|(_, verdict)| *verdict = Verdict::Silent);
    }

    fn take(&mut self, (transport, answer): Answered<T>, takes: &impl Fn(T, &str) -> bool) {
        let (verdict, failure) = match answer {
            Ok(Answer::Switched { protocol, io }) if takes(transport, &protocol) => {
                self.switched = Some(Switched { transport, protocol, io });
                (Verdict::Works, None)
            }
            Ok(Answer::Switched { protocol, .. }) => {
                (Verdict::Refused, Some(Failure::Refused(transport, Refusal::odd_switch(&protocol))))
            }
            Ok(Answer::Refused(refusal)) => (refusal.verdict(), Some(Failure::Refused(transport, refusal))),
            Err(error) => (Verdict::Broken, Some(Failure::Broken(error))),
        };
        debug!(transport = transport.name(), ?verdict, "an upgrade is answered");
        self.made.iter_mut().filter(|(tried, _)| *tried == transport).for_each(|(_, old)| *old = verdict);
        self.failures.extend(failure.map(|failure| (transport, failure)));
    }
}

impl<T: Transport> Memory<T> {
    /// Remembers a transport that carries bytes, in place of one that does not.
    pub(super) fn replace(&self, silent: T, works: T) {
        let mut worked = self.worked.lock().expect("no panic while the lock is held");
        if worked.is_none_or(|worked| worked == silent) {
            *worked = Some(works);
        }
    }

    /// Upgrades a connection. `dialled`: an existing connection. `ask`: returns the request for a transport. `takes`:
    /// returns whether a protocol was offered for it.
    pub(super) async fn upgrade(
        &self,
        cluster: &Cluster,
        credential: &Credential,
        default: T,
        mut dialled: Option<Dialled>,
        ask: impl Fn(T) -> Asked,
        takes: impl Fn(T, &str) -> bool,
    ) -> Result<Switched<T>, Failure<T>> {
        let remembered = *self.worked.lock().expect("no panic while the lock is held");
        let order = choice::order(remembered.unwrap_or(default));
        let mut attempts = Attempts::new();
        let mut late_at = Instant::now();
        // A failure on a spare connection says nothing about the transport. The attempt is repeated on a new connection.
        let mut is_on_spare = false;
        if dialled.is_none() {
            dialled = spare(cluster, credential);
        }
        loop {
            match choice::next(&order, &attempts.made) {
                Next::Try(transport) => {
                    let dialled = match dialled.take() {
                        Some(dialled) => dialled,
                        None => select! {
                            dialled = dial_as(cluster, credential) => dialled.map_err(Failure::Cluster)?,
                            Some(answered) = attempts.asked.next() => {
                                attempts.take(answered, &takes);
                                continue;
                            }
                        },
                    };
                    is_on_spare = dialled.is_spare;
                    attempts.ask(transport, ask(transport), dialled.io);
                    late_at = Instant::now() + choice::patience(remembered.is_some(), attempts.made.len());
                }
                Next::Wait => {
                    let is_patient = attempts.made.iter().any(|(_, verdict)| *verdict == Verdict::Asked);
                    select! {
                        Some(answered) = attempts.asked.next() => match answered.1 {
                            Err(_) if is_on_spare => attempts = Attempts::new(),
                            _ => attempts.take(answered, &takes),
                        },
                        () = sleep_until(late_at), if is_patient => match is_on_spare {
                            true => attempts = Attempts::new(),
                            false => attempts.lose_patience(),
                        },
                        else => return Err(Failure::Silent),
                    }
                }
                Next::Use(transport) => {
                    let Some(switched) = attempts.switched else { return Err(Failure::Silent) };
                    self.remember(transport, order, attempts.asked);
                    return Ok(switched);
                }
                Next::Fail(transport) => {
                    let failed = attempts.failures.into_iter().find(|(tried, _)| *tried == transport);
                    return Err(failed.map_or(Failure::Silent, |(_, failure)| failure));
                }
            }
        }
    }

    /// Remembers the transport that works. If one before it in the order is only late, waits for its answer in the
    /// background: an answer means that the server was slow, and that the transport works.
    fn remember(&self, works: T, order: Vec<T>, late: FuturesUnordered<BoxFuture<'static, Answered<T>>>) {
        *self.worked.lock().expect("no panic while the lock is held") = Some(works);
        if late.is_empty() {
            return;
        }
        let worked = self.worked.clone();
        let mut tasks = self.late.lock().expect("no panic while the lock is held");
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let rank = |transport: T| order.iter().position(|other| *other == transport);
            let better = late.filter_map(|(transport, answer)| {
                let is_better = matches!(answer, Ok(Answer::Switched { .. })) && rank(transport) < rank(works);
                std::future::ready(is_better.then_some(transport))
            });
            tokio::pin!(better);
            if let Ok(Some(better)) = timeout(LATE, better.next()).await {
                let mut worked = worked.lock().expect("no panic while the lock is held");
                if *worked == Some(works) {
                    *worked = Some(better);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::duplex;

    use super::*;
    use crate::k8s::upgrade::choice::tests::Way::{self, A, B, C};

    /// Returns what is remembered after `works` has worked and the late answer to `late` has come. `meanwhile`: what is
    /// remembered in between.
    async fn remembered(works: Way, (late, is_switched): (Way, bool), meanwhile: Option<Way>) -> Option<Way> {
        let memory = Memory::default();
        let answer = match is_switched {
            true => Answer::Switched { protocol: "spdy".to_owned(), io: Box::new(duplex(1).0) },
            false => Answer::Refused(Refusal::odd_switch("spdy")),
        };
        let answering: BoxFuture<'static, Answered<Way>> = Box::pin(async move { (late, Ok(answer)) });
        memory.remember(works, choice::order(A), FuturesUnordered::from_iter([answering]));
        if let Some(meanwhile) = meanwhile {
            memory.replace(works, meanwhile);
        }
        let mut tasks = std::mem::take(&mut *memory.late.lock().unwrap());
        while tasks.join_next().await.is_some() {}
        *memory.worked.lock().unwrap()
    }

    #[tokio::test]
    async fn a_transport_before_the_one_that_worked_is_remembered_once_it_works_late() {
        assert_eq!(remembered(B, (A, true), None).await, Some(A));
        assert_eq!(remembered(B, (A, false), None).await, Some(B), "it was refused");
        assert_eq!(remembered(B, (C, true), None).await, Some(B), "the order counts, not the time");
        assert_eq!(remembered(B, (A, true), Some(C)).await, Some(C), "what was learned since counts");
    }

    #[test]
    fn a_silent_transport_is_replaced_only_while_it_is_the_remembered_one() {
        for (before, after) in [(None, B), (Some(A), B), (Some(C), C)] {
            let memory = Memory { worked: Arc::new(Mutex::new(before)), ..Memory::default() };
            memory.replace(A, B);
            assert_eq!(*memory.worked.lock().unwrap(), Some(after), "{before:?}");
        }
    }
}
