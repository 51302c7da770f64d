//! Takeovers while parts of the cluster hang, and while everything happens at once.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{Expose, NAMESPACE, RELAYS, Relays, are_again, curl, gets, laptop, objects, run, take_web};
use crate::{load::cluster, support::kubectl};

/// How long the randomised test goes on.
const FOR: Duration = Duration::from_secs(60);

fn stop_api_server_for(pause: Duration) {
    cluster(&["signal", "STOP", "kube-apiserver"]);
    thread::sleep(pause);
    cluster(&["signal", "CONT", "kube-apiserver"]);
}

#[test]
#[ignore = "breaks the cluster for all others"]
fn a_takeover_outlives_an_api_server_that_hangs_for_ten_seconds() {
    let relays = Relays::start();
    let (port, web) = (laptop(), format!("http://web.{NAMESPACE}/whoami"));
    gets(&web, false);
    let before = objects();
    let expose = take_web(port);
    gets(&web, true);
    // A visitor inside the cluster, which needs no API server itself.
    // A run that failed may have left one.
    let asked = format!("asked-{}", std::process::id());
    let asks = format!("for at in $(seq 40); do curl -s --max-time 30 {web}; echo; sleep 0.5; done > {asked} 2>&1");
    let visitor = ["-n", NAMESPACE, "exec", "echo", "--", "sh", "-c"];
    kubectl(&[&visitor[..], &[&format!("({asks}; touch {asked}.done) > /dev/null 2>&1 &")]].concat());
    stop_api_server_for(Duration::from_secs(10));
    gets(&web, true);
    crate::support::eventually("the visitor has asked", Duration::from_secs(120), || {
        run(Command::new("kubectl").args(visitor).arg(format!("rm {asked}.done"))).status.success()
    });
    let asked = kubectl(&[&visitor[..], &[&format!("cat {asked}")]].concat());
    let answers: Vec<&str> = asked.lines().filter(|line| !line.is_empty()).collect();
    assert!(
        answers.len() >= 20 && answers.iter().all(|answer| *answer == "laptop"),
        "no request went elsewhere: {asked}"
    );

    // The laptop is killed while nobody can change anything.
    cluster(&["signal", "STOP", "kube-apiserver"]);
    drop(expose);
    thread::sleep(Duration::from_secs(10));
    cluster(&["signal", "CONT", "kube-apiserver"]);
    gets(&web, false);
    are_again(&before);
    drop(relays);
}

/// Steps of splitmix64, so that a seed says everything but the timing.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) % bound as u64) as usize
    }
}

#[test]
#[ignore = "it takes over Services that the other tests use: cargo test --features e2e --test e2e expose:: -- --ignored"]
#[expect(clippy::print_stdout, reason = "cargo shows it when the test fails")]
fn whatever_happens_every_object_is_as_before_at_the_end() {
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = std::env::var("ADIT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(seed);
    println!("ADIT_SEED={seed}");
    let mut random = Random(seed);
    let relays = Relays::start();
    let before = objects();
    let (port, web, echo) = (laptop(), format!("web.{NAMESPACE}"), format!("echo.{NAMESPACE}"));
    let port = |of_service: u16| format!("{port}:{of_service}");
    let takes: [Vec<String>; 6] = [
        vec![port(80), "--as".into(), web.clone(), "--replace".into()],
        vec![port(81), "--as".into(), web.clone(), "--replace".into()],
        vec![port(80), "--as".into(), web.clone(), "--personal".into(), "x-user=anna".into()],
        vec![port(80), "--as".into(), web.clone(), "--personal-path".into(), "/bo".into()],
        vec![port(7001), "--as".into(), echo, "--replace".into()],
        vec![port(80), "--as".into(), format!("fresh.{NAMESPACE}")],
    ];
    let mut laptops: Vec<Expose> = Vec::new();
    let began = Instant::now();
    while began.elapsed() < FOR {
        match random.below(8) {
            0..=2 if laptops.len() < 5 => {
                let take: Vec<&str> = takes[random.below(takes.len())].iter().map(String::as_str).collect();
                laptops.push(Expose::start(&take));
            }
            3 if !laptops.is_empty() => {
                let laptop = laptops.swap_remove(random.below(laptops.len()));
                laptop.interrupt();
                // Some were refused, and have ended by themselves.
                drop(laptop.ends());
            }
            4 if !laptops.is_empty() => drop(laptops.swap_remove(random.below(laptops.len()))),
            5 => {
                let pod = format!("relay-{}", random.below(3));
                let how = [&["--force", "--grace-period=0"][..], &["--wait=false"]][random.below(2)];
                drop(run(Command::new("kubectl").args(["-n", RELAYS, "delete", "pod", &pod]).args(how)));
            }
            6 => drop(curl(&[&format!("http://{web}/whoami")])),
            _ => thread::sleep(Duration::from_millis(200 * random.below(10) as u64)),
        }
    }
    drop(laptops);
    kubectl(&["-n", RELAYS, "rollout", "status", "statefulset/relay", "--timeout=120s"]);
    are_again(&before);
    drop(relays);
}
