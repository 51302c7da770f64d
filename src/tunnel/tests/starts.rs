//! Tests of the start of a tunnel: who shares it, who waits for it, and how long.

use super::*;

#[tokio::test(start_paused = true)]
async fn callers_at_the_same_time_share_one_start_and_the_first_may_leave() {
    let (manager, backend, _) = manager(Scripted { delay: Duration::from_secs(2), ..Scripted::default() });
    let (one, two) = (manager.clone(), manager.clone());
    let first = tokio::spawn(async move { one.acquire(&target("s"), IDLE).await.map(drop) });
    let second = tokio::spawn(async move { two.acquire(&target("s"), IDLE).await.map(drop) });
    sleep(Duration::from_secs(1)).await;
    first.abort();
    second.await.unwrap().unwrap();
    assert_eq!(backend.opened.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn names_of_one_port_that_start_together_share_one_tunnel() {
    let (manager, backend, _) = manager(Scripted { delay: Duration::from_secs(2), ..Scripted::default() });
    let names = [
        PortRef::Auto,
        PortRef::number(80).unwrap(),
        PortRef::Name("http".parse().unwrap()),
        PortRef::Https,
        PortRef::Auto,
    ];
    let leases = futures::future::join_all(names.map(|port| lease_at(&manager, "s", port))).await;
    let leases: Result<Vec<_>, _> = leases.into_iter().collect();
    let ids: std::collections::HashSet<_> = leases.unwrap().iter().map(Lease::id).collect();
    assert_eq!((ids.len(), backend.opened.load(Ordering::SeqCst), manager.snapshot().len()), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn another_port_of_a_service_that_starts_gets_a_tunnel_of_its_own() {
    let (manager, backend, _) = manager(Scripted { delay: Duration::from_secs(2), ..Scripted::default() });
    let started = Instant::now();
    let (first, second) = tokio::join!(
        lease_at(&manager, "s", PortRef::number(80).unwrap()),
        lease_at(&manager, "s", PortRef::number(81).unwrap())
    );
    assert_eq!(started.elapsed(), Duration::from_secs(2), "two numbers do not wait for each other");
    assert_eq!((first.unwrap().endpoint().port.number, second.unwrap().endpoint().port.number), (80, 81));
    let (any, other) =
        tokio::join!(lease_at(&manager, "t", PortRef::Auto), lease_at(&manager, "t", PortRef::number(81).unwrap()));
    assert_eq!((any.unwrap().endpoint().port.number, other.unwrap().endpoint().port.number), (80, 81));
    assert_eq!(backend.opened.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn a_start_of_another_port_that_takes_a_callers_whole_time_does_not_fail_it() {
    let (manager, ..) = manager(Scripted { delay: Duration::from_secs(15), ..Scripted::default() });
    let (any, other) =
        tokio::join!(lease_at(&manager, "t", PortRef::Auto), lease_at(&manager, "t", PortRef::number(81).unwrap()));
    assert_eq!((any.unwrap().endpoint().port.number, other.unwrap().endpoint().port.number), (80, 81));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_means_no_port_does_not_keep_others_from_theirs() {
    let answers = Mutex::new([not_found()].into());
    let (manager, ..) = manager(Scripted { delay: Duration::from_secs(1), answers, ..Scripted::default() });
    let (unclear, clear) =
        tokio::join!(lease_at(&manager, "s", PortRef::Auto), lease_at(&manager, "s", PortRef::number(80).unwrap()));
    assert_eq!(unclear.err(), Some(not_found()));
    let clear = clear.unwrap();
    // The running tunnel has learned which port `auto` means.
    assert_eq!(manager.acquire(&target_at("s", PortRef::Auto), IDLE).await.unwrap().id(), clear.id());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_start_under_another_name_keeps_it_going() {
    let (manager, backend, _) = manager(Scripted { delay: Duration::from_secs(2), ..Scripted::default() });
    let one = manager.clone();
    let first = tokio::spawn(async move { one.acquire(&target_at("s", PortRef::Auto), IDLE).await.map(drop) });
    sleep(Duration::from_millis(500)).await;
    let two = manager.clone();
    let second = tokio::spawn(async move { two.acquire(&target("s"), IDLE).await.map(drop) });
    sleep(Duration::from_millis(500)).await;
    first.abort();
    second.await.unwrap().unwrap();
    assert_eq!(backend.opened.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_becomes_ready_is_waited_for() {
    let (manager, backend, _) =
        manager(Scripted { answers: Mutex::new([not_ready(), not_ready()].into()), ..Scripted::default() });
    manager.acquire(&target("s"), IDLE).await.unwrap();
    assert_eq!(backend.opened.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_with_the_budget_and_says_why() {
    let (manager, ..) = manager(Scripted {
        answers: Mutex::new(std::iter::repeat_n(not_ready(), 1000).collect()),
        ..Scripted::default()
    });
    let started = Instant::now();
    assert_eq!(manager.acquire(&target("s"), IDLE).await.err(), Some(not_ready()));
    assert!((9..=11).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_does_not_exist_is_asked_for_once_in_five_seconds() {
    let (manager, backend, _) =
        manager(Scripted { answers: Mutex::new([not_found(), not_found()].into()), ..Scripted::default() });
    for _ in 0..100 {
        assert_eq!(manager.acquire(&target("s"), IDLE).await.err(), Some(not_found()));
    }
    assert_eq!(backend.opened.load(Ordering::SeqCst), 1);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(manager.acquire(&target("s"), IDLE).await.err(), Some(not_found()));
    assert_eq!(backend.opened.load(Ordering::SeqCst), 2);
    assert_eq!(manager.snapshot()[0].state, "failed");
    sleep(Duration::from_secs(60)).await;
    assert!(manager.snapshot().is_empty(), "failed tunnels are forgotten");
}

#[tokio::test(start_paused = true)]
async fn each_caller_waits_its_own_time_for_a_pod_to_become_ready() {
    let (manager, backend, _) = manager(Scripted {
        answers: Mutex::new(std::iter::repeat_n(not_ready(), 1000).collect()),
        ..Scripted::default()
    });
    let (one, two) = (manager.clone(), manager.clone());
    let first = tokio::spawn(async move { one.acquire(&target("s"), IDLE).await.map(drop) });
    sleep(Duration::from_secs(9)).await;
    let second = tokio::spawn(async move { two.acquire(&target("s"), IDLE).await.map(drop) });
    sleep(Duration::from_secs(5)).await;
    assert_eq!(first.await.unwrap(), Err(not_ready()));
    backend.answers.lock().unwrap().clear();
    second.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_first_start_that_is_slow_is_waited_for_and_not_for_ever() {
    for (delay, wanted) in [(45, None), (300, Some(OpenError::TimedOut { after: SLOW_START }))] {
        let (manager, _backend, _drain) =
            manager(Scripted { delay: Duration::from_secs(delay), ..Scripted::default() });
        assert_eq!(manager.acquire(&target("s"), IDLE).await.err(), wanted, "{delay} s");
    }
}

#[tokio::test(start_paused = true)]
async fn random_names_are_limited_and_leave_nothing() {
    let (manager, ..) = manager(Scripted {
        answers: Mutex::new(std::iter::repeat_n(not_found(), 10_000).collect()),
        ..Scripted::default()
    });
    let mut refused = 0;
    for number in 0..1000 {
        let error = manager.acquire(&target(&format!("s{number}")), IDLE).await.err().unwrap();
        refused += usize::from(error == OpenError::TooManyNew);
    }
    assert!(refused >= 700, "{refused}");
    sleep(Duration::from_secs(120)).await;
    assert!(manager.snapshot().is_empty());
}

#[tokio::test(start_paused = true)]
async fn names_that_lead_somewhere_are_not_limited() {
    let (manager, ..) = manager(Scripted::default());
    for number in 0..1000 {
        manager.acquire(&target(&format!("s{number}")), IDLE).await.unwrap();
    }
    assert_eq!(manager.snapshot().len(), 1000);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_served_by_an_attempt_that_nobody_asked_for() {
    let (manager, backend, _) = manager(Scripted { delay: Duration::from_millis(1), ..Scripted::default() });
    let lease = manager.acquire(&target("s"), IDLE).await.unwrap();
    backend.answers.lock().unwrap().extend(std::iter::repeat_n(not_found(), 10));
    backend.sessions.lock().unwrap()[0].send_replace(Some(CloseReason::Lost { detail: "eof".into() }));
    sleep(Duration::from_secs(6)).await;
    assert_eq!(backend.opened.load(Ordering::SeqCst), 2);
    drop(lease);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(manager.snapshot()[0].state, "failed", "a lease that is given back is no wish for another attempt");
}
