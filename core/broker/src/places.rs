//! Places that connections and streams take, and how they are shared, so that neither one address, nor those
//! who have not said who they are, nor one connection leaves nothing for others.
//!
//! Absent: what is done with who gets no place (the endpoint, the session).

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;

use crate::config::Limits;

/// Streams that a connection has beside the bound on all: a request is always answered.
const STREAMS_FREE: usize = 4;
/// A connection may have this part of the streams that are left, and so leaves as many parts but one of them.
const STREAMS_SHARE: usize = 4;

/// What connections and streams there are.
#[derive(Debug)]
pub(crate) struct Places {
    addresses: Mutex<FxHashMap<IpAddr, Taken>>,
    connections_address_max: usize,
    handshakes_address_max: usize,
    streams: AtomicUsize,
    streams_total_max: usize,
}

/// What one address has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Taken {
    connections: usize,
    /// Of them, those of which nobody knows whose they are.
    strangers: usize,
}

impl Places {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            addresses: Mutex::default(),
            connections_address_max: limits.connections_address_max,
            handshakes_address_max: limits.handshakes_address_max,
            streams: AtomicUsize::new(0),
            streams_total_max: limits.streams_total_max,
        }
    }

    /// Take a place for a connection from an address that was proven; `false`: it has its share. Give it back
    /// with [`leave`](Self::leave).
    pub(crate) fn enter(&self, address: IpAddr) -> bool {
        let mut addresses = self.addresses();
        let network = network(address);
        let taken = addresses.get(&network).copied().unwrap_or_default();
        if taken.connections >= self.connections_address_max
            || taken.strangers >= self.handshakes_address_max
        {
            return false;
        }
        let entered = Taken {
            connections: taken.connections + 1,
            strangers: taken.strangers + 1,
        };
        addresses.insert(network, entered);
        true
    }

    /// The connection is somebody's now.
    pub(crate) fn introduce(&self, address: IpAddr) {
        if let Some(taken) = self.addresses().get_mut(&network(address)) {
            taken.strangers -= 1;
        }
    }

    /// The connection is over.
    pub(crate) fn leave(&self, address: IpAddr, is_stranger: bool) {
        let mut addresses = self.addresses();
        let network = network(address);
        if let Some(taken) = addresses.get_mut(&network) {
            taken.connections -= 1;
            taken.strangers -= usize::from(is_stranger);
            if taken.connections == 0 {
                addresses.remove(&network);
            }
        }
    }

    /// Take a place for a stream of a connection that has `own` of them; `false`: it has its share. Give it back
    /// with [`end_stream`](Self::end_stream).
    pub(crate) fn begin_stream(&self, own: usize) -> bool {
        let all = self.streams.load(Ordering::Relaxed);
        let left = self.streams_total_max.saturating_sub(all);
        let may = own < STREAMS_FREE.max(left.div_ceil(STREAMS_SHARE));
        if may {
            self.streams.fetch_add(1, Ordering::Relaxed);
        }
        may
    }

    pub(crate) fn end_stream(&self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }

    fn addresses(&self) -> MutexGuard<'_, FxHashMap<IpAddr, Taken>> {
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one address: of IPv6, the network that one customer is given.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        Places::new(&Limits {
            connections_address_max: 3,
            handshakes_address_max: 2,
            streams_total_max: 100,
            ..Limits::default()
        })
    }

    #[test]
    fn an_address_has_its_share_and_strangers_have_a_smaller_one() {
        let places = places();
        let [one, other] = ["192.0.2.1", "192.0.2.2"].map(|a| a.parse().expect("an address"));
        assert!(places.enter(one) && places.enter(one));
        assert!(!places.enter(one), "two strangers are there");
        assert!(places.enter(other), "others are not concerned");
        places.introduce(one);
        assert!(places.enter(one), "one of them said who it is");
        places.introduce(one);
        assert!(!places.enter(one), "three connections are there");
        places.leave(one, true);
        assert!(places.enter(one));
        for _ in 0..2 {
            places.leave(one, false);
        }
        places.leave(one, true);
        places.leave(other, true);
        assert!(places.addresses().is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_a_mapped_one_is_its_ipv4() {
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2:ffff::"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    #[test]
    fn a_connection_leaves_streams_for_others_and_always_has_a_few() {
        let places = places();
        let mut have = [0; 40];
        for own in &mut have {
            while places.begin_stream(*own) {
                *own += 1;
            }
        }
        assert!((15..=25).contains(&have[0]), "a part of all: {have:?}");
        assert!(have.iter().all(|&own| own >= STREAMS_FREE), "{have:?}");
        let free = have.len() * STREAMS_FREE;
        assert!(have.iter().sum::<usize>() <= 100 + free, "{have:?}");
        for _ in 0..have.iter().sum() {
            places.end_stream();
        }
        assert_eq!(places.streams.load(Ordering::Relaxed), 0);
    }
}
