//! The descriptions of relations and types that hold at this place of a trail, so that a segment can begin with them and a reader
//! with any segment.
//!
//! **Always holds:** of two descriptions of one relation that which came later counts, as it does for whoever decodes. A segment
//! begins with each as one that came within a segment of a streamed transaction, since whoever knows it already then learns nothing
//! new from it, and with a number that is later than its own by as little as can be.

use std::collections::BTreeMap;

use pgsluice_proto::Lsn;

use super::segment::Record;
use crate::decode::Arrival;

const RELATION: u8 = b'R';
const TYPE: u8 = b'Y';

#[derive(Debug, Default)]
pub struct Known {
    /// By what they describe: the message's letter and its OID.
    descriptions: BTreeMap<(u8, [u8; 4]), Description>,
    /// Above all that have come.
    arrivals: u64,
}

#[derive(Debug)]
struct Description {
    lsn: Lsn,
    arrival: Option<Arrival>,
    payload: Vec<u8>,
}

impl Known {
    /// As a segment begins that counts from here.
    pub fn counting_from(arrivals: u64) -> Known {
        Known { descriptions: BTreeMap::new(), arrivals }
    }

    /// A number that is even, as those are that a stream counts from, and above all that have come.
    pub fn arrivals(&self) -> u64 {
        self.arrivals.next_multiple_of(2)
    }

    /// It is one that has to be known.
    #[inline]
    pub fn concerns(payload: &[u8]) -> bool {
        matches!(payload.first(), Some(&(RELATION | TYPE)))
    }

    pub fn learn(&mut self, record: &Record<'_>) {
        let Record { lsn, arrival, payload } = *record;
        let Some((letter, id)) = payload.split_first().and_then(|(letter, rest)| Some((*letter, *rest.first_chunk()?)))
        else {
            return;
        };
        if !Known::concerns(payload) {
            return;
        }
        if let Some(arrival) = arrival {
            self.arrivals = self.arrivals.max(arrival.as_u64() + 1);
        }
        let description = Description { lsn, arrival, payload: payload.to_owned() };
        match self.descriptions.get_mut(&(letter, id)) {
            Some(known) if known.arrival > arrival => {}
            Some(known) => *known = description,
            None => drop(self.descriptions.insert((letter, id), description)),
        }
    }

    /// It is known, and nothing else is since.
    pub fn holds(&self, payload: &[u8]) -> bool {
        self.descriptions.values().any(|known| known.payload == payload)
    }

    /// As a segment begins.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        self.descriptions.values().map(|Description { lsn, arrival, payload }| Record {
            lsn: *lsn,
            arrival: arrival.map(|arrival| Arrival::from_u64(arrival.as_u64().next_multiple_of(2))),
            payload,
        })
    }
}
