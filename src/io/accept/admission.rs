//! Admission of connections, within the limits in total and per address.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    fmt,
    future::Future,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Limits, Notice};

/// Counts accepted connections against their limits.
///
/// A connection is new until [`Place::settle`]. At a limit, adit closes the oldest new connection in favour of the next
/// one: of the same address if that has reached its limit, else of the address with the most new ones. So silent
/// clients lock nobody out, and only their own address loses connections. If all connections are settled, adit refuses
/// new ones.
pub struct Admission {
    limits: Limits,
    names: Names,
    crowd: Mutex<Crowd>,
    all_reached: Notice,
    address_reached: Notice,
}

/// Words for the log when a limit is reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names {
    /// Plural noun for what is counted: `connections of visitors`.
    pub counted: &'static str,
    /// The option that raises [`Limits::connections`].
    pub connections: &'static str,
    /// The option that raises [`Limits::per_address`].
    pub per_address: &'static str,
}

/// Limit that refuses a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// [`Limits::connections`].
    Connections,
    /// [`Limits::per_address`].
    Address,
    /// The open-file limit of the process.
    OpenFiles,
}

#[derive(Default)]
struct Crowd {
    count: usize,
    next: u64,
    addresses: HashMap<IpAddr, Address>,
}

/// Connections of one address.
#[derive(Default)]
struct Address {
    count: usize,
    /// New connections, oldest first, with the token that ends each.
    new: BTreeMap<u64, CancellationToken>,
}

impl Crowd {
    /// Ends the oldest new connection of `address`, or of the address with the most new ones. Returns whether there was one.
    fn evict(&mut self, address: Option<IpAddr>) -> bool {
        let address = address.or_else(|| {
            let by_new = |(_, of): &(&IpAddr, &Address)| (of.new.len(), Reverse(of.new.keys().next().copied()));
            self.addresses.iter().max_by_key(by_new).map(|(address, _)| *address)
        });
        let oldest = address.and_then(|address| Some((address, self.addresses.get_mut(&address)?.new.pop_first()?.1)));
        let Some((address, evicted)) = oldest else { return false };
        evicted.cancel();
        self.leave(address);
        true
    }

    fn leave(&mut self, address: IpAddr) {
        self.count -= 1;
        if let Some(of) = self.addresses.get_mut(&address) {
            of.count -= 1;
            if of.count == 0 {
                self.addresses.remove(&address);
            }
        }
    }
}

impl Admission {
    pub fn new(limits: Limits, names: Names) -> Arc<Self> {
        let (all_reached, address_reached) = (Notice::default(), Notice::default());
        Arc::new(Self { limits, names, crowd: Mutex::default(), all_reached, address_reached })
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    fn crowd(&self) -> MutexGuard<'_, Crowd> {
        self.crowd.lock().expect("no panic while the lock is held")
    }

    /// Admits a connection of `peer`.
    ///
    /// # Errors
    /// A limit is reached, and no connection is new.
    pub fn admit(self: &Arc<Self>, peer: SocketAddr) -> Result<Place, Full> {
        let Limits { connections, per_address, .. } = self.limits;
        if connections.is_none() && per_address.is_none() {
            return Ok(Place { admission: self.clone(), entry: None });
        }
        let address = counted_as(peer.ip());
        let mut crowd = self.crowd();
        let of_address = crowd.addresses.get(&address).map_or(0, |of| of.count);
        if per_address.is_some_and(|most| of_address >= most) {
            let is_evicted = crowd.evict(Some(address));
            self.note_full(Some(address), is_evicted);
            if !is_evicted {
                return Err(Full::Address);
            }
        } else if connections.is_some_and(|most| crowd.count >= most) {
            let is_evicted = crowd.evict(None);
            self.note_full(None, is_evicted);
            if !is_evicted {
                return Err(Full::Connections);
            }
        }
        let (number, evicted) = (crowd.next, CancellationToken::new());
        crowd.next += 1;
        crowd.count += 1;
        let of = crowd.addresses.entry(address).or_default();
        of.count += 1;
        of.new.insert(number, evicted.clone());
        drop(crowd);
        let entry = Entry { admission: self.clone(), address, number, evicted, is_settled: AtomicBool::new(false) };
        Ok(Place { admission: self.clone(), entry: Some(Arc::new(entry)) })
    }

    /// Logs that a limit is reached. `whose`: the address that has reached its limit. `None`: the total limit.
    fn note_full(&self, whose: Option<IpAddr>, is_evicted: bool) {
        let (notice, limit, option) = match whose {
            None => (&self.all_reached, self.limits.connections, self.names.connections),
            Some(_) => (&self.address_reached, self.limits.per_address, self.names.per_address),
        };
        let Some(times) = notice.due() else { return };
        let (limit, counted) = (limit.unwrap_or_default(), self.names.counted);
        let whose = whose.map(|address| format!(" of {address}")).unwrap_or_default();
        let how = if is_evicted { "the oldest silent one is closed for each new one" } else { "new ones are refused" };
        warn!(times, "{limit} {counted}{whose} are open, which is the limit: {how}; {option} raises it");
    }
}

/// Place of one accepted connection. The last clone frees it on drop.
#[derive(Clone)]
pub struct Place {
    admission: Arc<Admission>,
    /// `None`: no limit, so nothing is counted.
    entry: Option<Arc<Entry>>,
}

struct Entry {
    admission: Arc<Admission>,
    address: IpAddr,
    number: u64,
    evicted: CancellationToken,
    is_settled: AtomicBool,
}

impl Place {
    /// Returns a place that is not counted, with the limits of a laptop.
    pub fn uncounted() -> Self {
        Self { admission: Admission::new(Limits::default(), Names::default()), entry: None }
    }

    pub fn limits(&self) -> &Limits {
        &self.admission.limits
    }

    /// Marks the connection as in use: adit no longer closes it in favour of a new one.
    pub fn settle(&self) {
        let Some(entry) = &self.entry else { return };
        if !entry.is_settled.swap(true, Ordering::Relaxed)
            && let Some(of) = self.admission.crowd().addresses.get_mut(&entry.address)
        {
            of.new.remove(&entry.number);
        }
    }

    /// Runs `task` until it ends. `None`: the connection was evicted first.
    pub fn run<F: Future>(&self, task: F) -> impl Future<Output = Option<F::Output>> + use<F> {
        let evicted = self.entry.as_ref().map(|entry| entry.evicted.clone());
        async move {
            match evicted {
                None => Some(task.await),
                Some(evicted) => tokio::select! {
                    ended = task => Some(ended),
                    () = evicted.cancelled() => None,
                },
            }
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("number", &self.entry.as_ref().map(|entry| entry.number)).finish()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut crowd = self.admission.crowd();
        if self.evicted.is_cancelled() {
            return;
        }
        if let Some(of) = crowd.addresses.get_mut(&self.address) {
            of.new.remove(&self.number);
        }
        crowd.leave(self.address);
    }
}

/// Returns the address that a connection counts for: with IPv6, its /64.
fn counted_as(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn admission(connections: usize, per_address: usize) -> Arc<Admission> {
        let limits = Limits { connections: Some(connections), per_address: Some(per_address), ..Limits::default() };
        Admission::new(limits, Names::default())
    }

    fn peer(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 1)
    }

    fn is_evicted(place: &Place) -> bool {
        place.run(std::future::pending::<()>()).now_or_never() == Some(None)
    }

    fn settled(place: Place) -> Place {
        place.settle();
        place
    }

    #[test]
    fn the_oldest_new_connection_of_an_address_makes_room_for_its_next() {
        let admission = admission(100, 3);
        let places: Vec<_> = (0..3).map(|_| admission.admit(peer("192.0.2.1")).unwrap()).collect();
        places[0].settle();
        let other = admission.admit(peer("192.0.2.2")).unwrap();
        let next = admission.admit(peer("192.0.2.1")).unwrap();
        assert_eq!(places.iter().map(is_evicted).collect::<Vec<_>>(), [false, true, false]);
        assert!(!is_evicted(&other) && !is_evicted(&next));
    }

    #[test]
    fn in_all_it_is_the_oldest_of_the_address_that_has_most() {
        let admission = admission(5, 100);
        let legitimate = admission.admit(peer("192.0.2.1")).unwrap();
        let crowd: Vec<_> = (0..4).map(|_| admission.admit(peer("192.0.2.66")).unwrap()).collect();
        let newcomer = admission.admit(peer("192.0.2.2")).unwrap();
        let another = admission.admit(peer("192.0.2.66")).unwrap();
        assert_eq!(crowd.iter().map(is_evicted).collect::<Vec<_>>(), [true, true, false, false]);
        assert!([legitimate, newcomer, another].iter().all(|place| !is_evicted(place)));
    }

    #[test]
    fn connections_in_use_stay_and_newcomers_are_refused() {
        let admission = admission(3, 2);
        let first = settled(admission.admit(peer("192.0.2.1")).unwrap());
        let second = settled(admission.admit(peer("192.0.2.1")).unwrap());
        assert_eq!(admission.admit(peer("192.0.2.1")).err(), Some(Full::Address));
        let third = settled(admission.admit(peer("192.0.2.2")).unwrap());
        assert_eq!(admission.admit(peer("192.0.2.3")).err(), Some(Full::Connections));
        assert!([&first, &second, &third].iter().all(|place| !is_evicted(place)));
        let clone = first.clone();
        drop(first);
        assert_eq!(admission.admit(peer("192.0.2.3")).err(), Some(Full::Connections));
        drop(clone);
        assert!(admission.admit(peer("192.0.2.3")).is_ok());
    }

    #[test]
    fn whatever_comes_and_goes_nothing_is_left() {
        let admission = admission(4, 3);
        let mut places = Vec::new();
        for step in 0..1000u32 {
            // Deterministic and uneven.
            let random = step.wrapping_mul(2_654_435_761) >> 16;
            match random % 4 {
                0 if !places.is_empty() => drop(places.swap_remove(random as usize % places.len())),
                1 if !places.is_empty() => Place::settle(&places[random as usize % places.len()]),
                _ => places.extend(admission.admit(peer(&format!("192.0.2.{}", random % 5)))),
            }
            let crowd = admission.crowd();
            assert!(crowd.count <= 4 && crowd.addresses.values().all(|of| (1..=3).contains(&of.count)));
            assert_eq!(crowd.count, crowd.addresses.values().map(|of| of.count).sum::<usize>());
        }
        drop(places);
        assert!(admission.crowd().count == 0 && admission.crowd().addresses.is_empty());
    }

    #[test]
    fn an_address_of_ipv6_is_its_network() {
        let same = |a: &str, b: &str| counted_as(a.parse().unwrap()) == counted_as(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:1:2:3") && !same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:192.0.2.1", "192.0.2.1") && !same("192.0.2.1", "192.0.2.2"));
    }

    #[test]
    fn without_limits_nothing_is_counted() {
        let admission = Admission::new(Limits::default(), Names::default());
        let _place = admission.admit(peer("127.0.0.1")).unwrap();
        assert_eq!(admission.crowd().count, 0);
    }
}
