//! Everything at once: clients that come, go and return, relays that are killed, and an API server with all faults.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use adit::{demo::faults::Mishap, wire::relay::Kind};
use tokio::time::{Instant, sleep, timeout};

use super::support::{InPod, Laptop, Place};

/// Duration of a test.
const FOR: Duration = Duration::from_secs(8);

/// Random numbers (splitmix64): the seed determines everything but the timing.
#[derive(Clone)]
struct Random(Arc<Mutex<u64>>);

impl Random {
    fn below(&self, bound: u64) -> u64 {
        let mut seed = self.0.lock().unwrap();
        *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *seed;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % bound
    }

    fn of<T: Copy>(&self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

const SERVICES: [(Kind, &str); 10] = [
    (Kind::ReplacedService, "web.shop:80"),
    (Kind::ReplacedService, "tools.shop:80"),
    (Kind::ReplacedService, r#"tools.shop:80 {"headers":{"x-user":"anna"}}"#),
    (Kind::ReplacedService, r#"tools.shop:80 {"path":"/bo"}"#),
    (Kind::ReplacedService, r#"outside.shop:81 {"host":"anna"}"#),
    (Kind::ReplacedService, "tools.shop:7000"),
    (Kind::ReplacedService, "outside.shop:80"),
    (Kind::ReplacedService, "outside.shop:81"),
    (Kind::Service, "fresh.shop:80"),
    (Kind::Service, "fresh.shop:443"),
];

#[tokio::test]
#[expect(clippy::print_stdout, reason = "cargo shows it when the test fails")]
async fn whatever_happens_everything_is_as_before_at_the_end() {
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("ADIT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(seed);
    println!("ADIT_SEED={seed}");
    let random = Random(Arc::new(Mutex::new(seed)));
    let place = Place::new().await;
    place.put_outside();
    let before = place.objects();
    let calm = Arc::new(AtomicBool::new(false));
    misbehave(&place, &random, &calm);

    let mut relays: Vec<InPod> = Vec::new();
    for pod in ["one", "two"] {
        relays.push(place.relay(pod, "0").await);
    }
    let mut laptops: Vec<(usize, Laptop)> = Vec::new();
    let (began, mut starts) = (Instant::now(), 0);
    while began.elapsed() < FOR {
        match random.below(10) {
            0..=3 => {
                let at = random.below(2) as usize;
                let (kind, service) = random.of(&SERVICES);
                let mut laptop = Laptop::connect(&relays[at]).await;
                // Some clients do not wait for the answer.
                match random.below(3) {
                    0 => laptop.ask(kind, service).await,
                    _ => drop(timeout(Duration::from_millis(700), laptop.open(kind, service)).await),
                }
                laptops.push((at, laptop));
            }
            4 | 5 if !laptops.is_empty() => {
                let (_, laptop) = laptops.swap_remove(random.below(laptops.len() as u64) as usize);
                match random.below(2) {
                    0 => drop(laptop),
                    _ => laptop.goodbye().await,
                }
            }
            6 | 7 if !laptops.is_empty() => {
                // The client returns before or after the relay notices the end of the old connection.
                let (at, old) = laptops.swap_remove(random.below(laptops.len() as u64) as usize);
                let mut again = Laptop::connect(&relays[at]).await;
                again.resume = old.resume;
                let old = (random.below(2) == 0).then_some(old);
                let (kind, service) = random.of(&SERVICES);
                drop(timeout(Duration::from_millis(700), again.open(kind, service)).await);
                drop(old);
                laptops.push((at, again));
            }
            8 => {
                let at = random.below(2) as usize;
                laptops.retain(|(relay, _)| *relay != at);
                starts += 1;
                let pod = ["one", "two"][at];
                let old = relays.remove(at);
                place.kill(old);
                if random.below(2) == 0 {
                    // In a new pod with the same name, as in a StatefulSet.
                    place.demo.world().delete_pod("relay", pod, None);
                }
                relays.insert(at, place.relay(pod, &starts.to_string()).await);
            }
            _ => sleep(Duration::from_millis(random.below(150))).await,
        }
    }
    calm.store(true, Ordering::SeqCst);
    drop(laptops);
    // Late requests are done by now.
    sleep(Duration::from_millis(1500)).await;
    // A killed relay may have left something after the last sweep of the others, which sweep every 30 s. Or its Lease must expire
    // first.
    let last = place.relay("three", "0").await;
    place.is_again_within(&before, Duration::from_secs(75)).await;
    // It stays restored.
    sleep(Duration::from_secs(3)).await;
    place.is_again(&before).await;
    for relay in relays {
        place.relay_ends(relay).await;
    }
    place.relay_ends(last).await;
}

/// Injects a fault into one of eight requests.
fn misbehave(place: &Place, random: &Random, calm: &Arc<AtomicBool>) {
    let (random, calm) = (random.clone(), calm.clone());
    place.demo.faults().judge(Some(Box::new(move |method, path| {
        if calm.load(Ordering::SeqCst) || path.contains("/events") || random.below(8) > 0 {
            return None;
        }
        let late = Mishap::Late(Duration::from_millis(random.below(1000)));
        let any = [
            Mishap::Answer(409),
            Mishap::Answer(429),
            Mishap::Answer(500),
            Mishap::Answer(503),
            Mishap::Lose,
            Mishap::Hang,
            late,
        ];
        let mishap = random.of(&any);
        // Reads are not performed late, because that has no effect.
        Some(if method == http::Method::GET && mishap == late { Mishap::Hang } else { mishap })
    })));
}
