//! Ports for the relays of the tests: each relay has its own, and so has each suite that runs on this machine.

use std::{
    net::{Ipv4Addr, TcpListener},
    ops::RangeInclusive,
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    thread::sleep,
    time::Duration,
};

/// Ports of one suite. All blocks together end below those that Linux gives to outgoing connections.
const BLOCK: u16 = 2_000;

/// First ports of the blocks.
const FIRST: [u16; 6] = [20_000, 22_000, 24_000, 26_000, 28_000, 30_000];

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

/// Returns at most 20 ports that no other relay of the tests has. After some 100 relays the first ports are used again.
pub fn ports(count: u16) -> RangeInclusive<u16> {
    const MOST: u16 = 20;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    assert!(count <= MOST);
    // The first port of the block is the claim.
    let first = CLAIMED.1 + 1 + NEXT.fetch_add(1, Ordering::Relaxed) % (BLOCK / MOST - 1) * MOST;
    first..=first + count - 1
}
