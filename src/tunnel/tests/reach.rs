//! Tests of waiting for a target.

use super::*;
use crate::tunnel::reach::{passes, passes_or_appears};

fn patience(seconds: u64) -> Patience {
    let until = Instant::now() + Duration::from_secs(seconds);
    Patience { until, settle: Duration::from_millis(100), may_pass: passes }
}

fn refused() -> ConnectError {
    StreamFault::Refused { port: 80 }.into()
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_a_pod_longer_than_a_client_would_and_tells_each_reason_once() {
    let (manager, backend, _) = manager(Scripted::default());
    backend.answers.lock().unwrap().extend(std::iter::repeat_n(not_ready(), 80));
    let mut told = Vec::new();
    let reached = manager.reach(&target("s"), IDLE, patience(60), |error| told.push(error.clone())).await;
    assert_eq!(reached.unwrap().pod, "pod-81");
    assert_eq!(told, [not_ready()]);
}

#[tokio::test(start_paused = true)]
async fn a_reason_is_told_as_soon_as_it_is_known() {
    let (manager, backend, _) = manager(Scripted::default());
    backend.answers.lock().unwrap().extend([not_ready(), not_found()]);
    let started = Instant::now();
    let mut told = Vec::new();
    let all = Patience { may_pass: |_| true, ..patience(60) };
    let tell = |error: &OpenError| told.push((error.clone(), started.elapsed()));
    manager.reach(&target("s"), IDLE, all, tell).await.unwrap();
    assert_eq!(told[0], (not_ready(), Duration::ZERO));
    assert_eq!(told[1].0, not_found());
}

#[tokio::test(start_paused = true)]
async fn what_does_not_pass_is_told_at_once() {
    let (manager, backend, _) = manager(Scripted::default());
    backend.answers.lock().unwrap().extend(std::iter::repeat_n(not_found(), 80));
    let started = Instant::now();
    let error = manager.reach(&target("s"), IDLE, patience(60), |_| {}).await.unwrap_err();
    assert_eq!((error, started.elapsed() < Duration::from_secs(1)), (not_found(), true));
    let all = Patience { may_pass: |_| true, ..patience(60) };
    assert!(manager.reach(&target("s"), IDLE, all, |_| {}).await.is_err(), "it has failed 80 times in 60 s");
}

#[tokio::test(start_paused = true)]
async fn a_service_may_be_created_while_a_caller_waits_for_it() {
    let (manager, backend, _) = manager(Scripted::default());
    backend.answers.lock().unwrap().extend(std::iter::repeat_n(not_found(), 5));
    let mut told = Vec::new();
    let created = Patience { may_pass: passes_or_appears, ..patience(60) };
    manager.reach(&target("s"), IDLE, created, |error| told.push(error.clone())).await.unwrap();
    assert_eq!(told, [not_found()]);

    backend.answers.lock().unwrap().extend(std::iter::repeat_n(not_found(), 800));
    let created = Patience { may_pass: passes_or_appears, ..patience(3) };
    assert_eq!(manager.reach(&target("t"), IDLE, created, |_| {}).await.unwrap_err(), not_found());
}

#[tokio::test(start_paused = true)]
async fn its_time_is_its_own() {
    let (manager, backend, _) = manager(Scripted::default());
    backend.answers.lock().unwrap().extend(std::iter::repeat_n(not_ready(), 80));
    let started = Instant::now();
    let error = manager.reach(&target("s"), IDLE, patience(2), |_| {}).await.unwrap_err();
    assert_eq!((error, started.elapsed().as_secs()), (not_ready(), 2));

    let (manager, ..) = super::manager(Scripted { delay: Duration::from_secs(30), ..Scripted::default() });
    let error = manager.reach(&target("s"), IDLE, patience(2), |_| {}).await.unwrap_err();
    assert_eq!(error, OpenError::TimedOut { after: Duration::from_secs(2) });
}

#[tokio::test(start_paused = true)]
async fn a_port_that_refuses_is_asked_again_until_it_takes_a_connection() {
    let (manager, backend, _) = manager(Scripted::default());
    backend.refusals.lock().unwrap().extend(std::iter::repeat_with(refused).take(20));
    let started = Instant::now();
    let mut told = Vec::new();
    manager.reach(&target("s"), IDLE, patience(60), |error| told.push(error.to_string())).await.unwrap();
    assert_eq!(told, ["the pod refused the connection on port 80"]);
    assert!(started.elapsed() >= Duration::from_secs(5), "{:?}", started.elapsed());

    backend.refusals.lock().unwrap().extend(std::iter::repeat_with(refused).take(200));
    let error = manager.reach(&target("s"), IDLE, patience(3), |_| {}).await.unwrap_err();
    assert_eq!(error, StreamFault::Refused { port: 80 }.into());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_speaks_first_is_there_at_once() {
    let (manager, backend, _) = manager(Scripted::default());
    let speaking = backend.clone();
    tokio::spawn(async move {
        loop {
            for pod in speaking.pods.lock().unwrap().iter_mut() {
                let _ = futures::FutureExt::now_or_never(pod.write_all(b"220 ready\r\n"));
            }
            sleep(Duration::from_millis(1)).await;
        }
    });
    let slow = Patience { settle: Duration::from_secs(30), ..patience(60) };
    let started = Instant::now();
    manager.reach(&target("s"), IDLE, slow, |_| {}).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1));
}
