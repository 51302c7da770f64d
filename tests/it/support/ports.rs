//! Ports for the relays of the tests: each relay has its own, and so has each suite that runs on this machine.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
    ops::{Deref, RangeInclusive},
    sync::{LazyLock, Mutex},
    thread::sleep,
    time::Duration,
};

/// Ports of one suite. All blocks together end below those that Linux gives to outgoing connections.
const BLOCK: u16 = 2_000;

/// First ports of the blocks.
const FIRST: [u16; 6] = [20_000, 22_000, 24_000, 26_000, 28_000, 30_000];

/// Most ports of one relay.
const MOST: u16 = 20;

/// The block of this process. A suite claims one by listening on its first port.
static CLAIMED: LazyLock<(TcpListener, u16)> = LazyLock::new(|| {
    loop {
        let claim = |port: &u16| Some((TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).ok()?, *port));
        match FIRST.iter().find_map(claim) {
            Some(claimed) => return claimed,
            None => sleep(Duration::from_millis(100)),
        }
    }
});

/// The range that was given last, and all that are in use, by number.
static USED: Mutex<(u16, BTreeSet<u16>)> = Mutex::new((0, BTreeSet::new()));

/// Ports that no other relay of the tests has, until this is dropped.
pub struct Ports {
    number: u16,
    range: RangeInclusive<u16>,
}

impl Ports {
    /// Keeps them until the suite ends.
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

/// Returns at most 20 ports for one relay.
pub fn ports(count: u16) -> Ports {
    assert!(count <= MOST);
    let mut guard = USED.lock().unwrap();
    let (last, used) = &mut *guard;
    let all = BLOCK / MOST - 1;
    // Listeners of a range may still be closing when its relay is gone: it is given again as late as possible.
    let mut numbers = (1..=all).map(|offset| (*last + offset) % all);
    let number = numbers.find(|number| used.insert(*number)).expect("not so many relays at once");
    *last = number;
    // The first port of the block is the claim.
    let first = CLAIMED.1 + 1 + number * MOST;
    Ports { number, range: first..=first + count - 1 }
}
