//! Ports for the tests, below Linux's ephemeral range: an outgoing connection of another test takes none of them. Each relay
//! has its own, and so does each suite that runs on this machine.

use std::{
    collections::BTreeSet,
    iter,
    net::{Ipv4Addr, TcpListener},
    ops::{Deref, RangeInclusive},
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    thread::sleep,
    time::Duration,
};

/// Number of ports of a suite. All blocks end below Linux's ephemeral range.
const BLOCK: u16 = 2_000;

/// First ports of the blocks.
const FIRST: [u16; 6] = [20_000, 22_000, 24_000, 26_000, 28_000, 30_000];

/// Number of ports of a block that are not for relays, at its end.
const SINGLE: u16 = 800;

/// Maximum number of ports of a relay.
const MOST: u16 = 20;

/// The block of this process. A suite claims a block by listening on its first port.
static CLAIMED: LazyLock<(TcpListener, u16)> = LazyLock::new(|| {
    loop {
        let claim = |port: &u16| Some((TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).ok()?, *port));
        match FIRST.iter().find_map(claim) {
            Some(claimed) => return claimed,
            None => sleep(Duration::from_millis(100)),
        }
    }
});

/// The last assigned range, and all ranges in use, by number.
static USED: Mutex<(u16, BTreeSet<u16>)> = Mutex::new((0, BTreeSet::new()));

/// Ports that no other relay of the tests uses, until dropped.
pub struct Ports {
    number: u16,
    range: RangeInclusive<u16>,
}

impl Ports {
    /// Keeps the ports until the suite ends.
    pub fn forever(self) -> RangeInclusive<u16> {
        let range = self.range.clone();
        std::mem::forget(self);
        range
    }
}

impl Deref for Ports {
    type Target = RangeInclusive<u16>;

    fn deref(&self) -> &Self::Target {
        &self.range
    }
}

impl Drop for Ports {
    fn drop(&mut self) {
        USED.lock().unwrap().1.remove(&self.number);
    }
}

/// Returns at most 20 ports for a relay.
pub fn ports(count: u16) -> Ports {
    assert!(count <= MOST);
    let mut guard = USED.lock().unwrap();
    let (last, used) = &mut *guard;
    let all = (BLOCK - SINGLE) / MOST - 1;
    // Listeners of a range may still be closing after its relay has ended, so a range is reused as late as possible.
    let mut numbers = (1..=all).map(|offset| (*last + offset) % all);
    let number = numbers.find(|number| used.insert(*number)).expect("not so many relays at once");
    *last = number;
    // The first port of the block is the claim.
    let first = CLAIMED.1 + 1 + number * MOST;
    Ports { number, range: first..=first + count - 1 }
}

/// Returns a port of 127.0.0.1 on which nothing listens, and that no other test is given soon.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = CLAIMED.1 + BLOCK - SINGLE;
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let mut ports =
        iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed) % SINGLE).take(usize::from(SINGLE));
    ports.find(is_free).expect("not so many ports at once")
}
