//! Which column of now a column is that the stream brings under the name that it had.
//!
//! In: the names of a description, in order of their attnums, and the catalog of now, with what was dropped. Out: the column, as far
//! as that can be told.
//!
//! A table's attnums are given out in order and never twice. So the columns of a description are those that the catalog has
//! below some attnum, in the same order, but for some that were dropped since. Where none was, the place of a column in the
//! description alone says which it is; where some were, there may be several answers, and none is guessed.

use pgsluice_proto::{Lsn, Oid};

use crate::source::identity::{IdentityColumn, TableIdentity};

/// What the column of a description is called now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Today {
    /// The same, and of the same type.
    Same,
    Renamed(String),
    Dropped,
    /// It may be dropped, or any of several.
    Unknown,
}

/// A description of a table, and what is known of the table.
#[derive(Clone, Copy, Debug)]
pub struct Past<'a> {
    /// What the target keeps of it.
    pub kept: Option<&'a TableIdentity>,
    pub now: &'a TableIdentity,
    /// Names in order of their attnums.
    pub described: &'a [String],
    /// Of a transaction that brought a row of this description.
    pub commit_lsn: Lsn,
}

/// An attnum that the description may have.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    attnum: i16,
    /// `None` where it was dropped since.
    column: Option<(&'a str, u32)>,
}

impl<'a> Past<'a> {
    pub(super) fn today(&self, name: &str, type_oid: Oid) -> Today {
        let Some(place) = self.described.iter().position(|one| one == name) else { return Today::Unknown };
        let mut places = self.candidates(place);
        // A name that it got later says nothing of the time before.
        let was_known = |known: &&IdentityColumn| known.seen <= self.commit_lsn.as_u64();
        if let Some(known) = self.kept.and_then(|kept| kept.attnum_of(name)).filter(was_known) {
            places.retain(|place| place.attnum == known.attnum);
        }
        let is_dropped = places.iter().all(|place| place.column.is_none());
        match places.as_slice() {
            [] => Today::Unknown,
            [Place { column: Some((now, oid)), .. }] if *now == name => {
                if *oid == type_oid.0 {
                    Today::Same
                } else {
                    Today::Unknown
                }
            }
            [Place { column: Some((now, _)), .. }] => Today::Renamed((*now).to_owned()),
            _ if is_dropped => Today::Dropped,
            _ => Today::Unknown,
        }
    }

    /// What the description, at this place, may have.
    fn candidates(&self, place: usize) -> Vec<Place<'a>> {
        let places = self.places();
        let (mut live, mut dropped, mut candidates) = (0, 0, Vec::new());
        for (before, one) in places.iter().enumerate() {
            let fits = live <= place && place - live <= dropped;
            let rest = self.described.len() - place - 1;
            if fits && rest < places.len() - before {
                candidates.push(*one);
            }
            match one.column {
                Some(_) => live += 1,
                None => dropped += 1,
            }
        }
        candidates
    }

    /// By attnum, those that rows may have carried.
    fn places(&self) -> Vec<Place<'a>> {
        let was_dropped = |attnum| self.kept.is_some_and(|kept| kept.had_dropped(attnum, self.commit_lsn));
        let place = |column: &'a IdentityColumn| match &column.name {
            Some(name) if column.listed => {
                Some(Place { attnum: column.attnum, column: Some((name.as_str(), column.type_oid)) })
            }
            Some(_) => None,
            None if was_dropped(column.attnum) => None,
            None => Some(Place { attnum: column.attnum, column: None }),
        };
        self.now.columns.iter().filter_map(place).collect()
    }

    /// Columns were dropped that may be described, or may not.
    pub(super) fn has_unknown(&self) -> bool {
        self.places().iter().any(|place| place.column.is_none())
    }

    /// Names that the target may have the column under, which is called so now.
    pub(super) fn former_names(&self, name: &str) -> Vec<&'a str> {
        let now = self.now.attnum_of(name);
        let (Some(kept), Some(now)) = (self.kept, now) else { return Vec::new() };
        let names = kept.columns.iter().filter(|column| column.attnum == now.attnum);
        names.filter_map(|column| column.name.as_deref()).filter(|one| *one != name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(columns: &[(i16, Option<&str>, u64)]) -> TableIdentity {
        let column = |(attnum, name, seen): &(i16, Option<&str>, u64)| IdentityColumn {
            attnum: *attnum,
            name: name.map(str::to_owned),
            type_oid: 23,
            typmod: -1,
            listed: true,
            seen: *seen,
        };
        TableIdentity { columns: columns.iter().map(column).collect(), ..TableIdentity::default() }
    }

    fn today(kept: &TableIdentity, now: &TableIdentity, described: &[&str], name: &str) -> Today {
        let described: Vec<_> = described.iter().map(|name| (*name).to_owned()).collect();
        Past { kept: Some(kept), now, described: &described, commit_lsn: Lsn::new(50) }.today(name, Oid(23))
    }

    #[test]
    fn the_place_in_a_description_says_which_column_it_is() {
        let kept = table(&[(1, Some("id"), 0)]);
        let now = table(&[(1, Some("id"), 0), (2, Some("a"), 0), (3, Some("b"), 0)]);
        assert_eq!(today(&kept, &now, &["id", "a"], "a"), Today::Same);
        assert_eq!(today(&kept, &now, &["id", "a", "b"], "b"), Today::Same);
        assert_eq!(today(&kept, &now, &["id", "v"], "v"), Today::Renamed("a".to_owned()));
        assert_eq!(today(&kept, &now, &["id", "a", "v"], "v"), Today::Renamed("b".to_owned()));
    }

    #[test]
    fn a_column_that_was_dropped_since_leaves_room_for_doubt_only_where_there_is_some() {
        let kept = table(&[(1, Some("id"), 0), (2, Some("a"), 0)]);
        let now = table(&[(1, Some("id"), 0), (2, Some("a"), 0), (3, None, 0)]);
        assert_eq!(today(&kept, &now, &["id", "a", "gone"], "gone"), Today::Dropped);
        let again = table(&[(1, Some("id"), 0), (2, None, 0), (3, Some("v"), 0)]);
        let id = table(&[(1, Some("id"), 0)]);
        assert_eq!(today(&id, &again, &["id", "v"], "v"), Today::Unknown);
        // It had been dropped before, or after.
        for (seen, outcome) in [(40, Today::Same), (60, Today::Unknown)] {
            let known = table(&[(1, Some("id"), 0), (2, None, seen)]);
            assert_eq!(today(&known, &again, &["id", "v"], "v"), outcome);
        }
    }

    #[test]
    fn a_name_that_is_kept_is_the_column_that_it_was() {
        let kept = table(&[(1, Some("id"), 0), (2, Some("v"), 0)]);
        let now = table(&[(1, Some("id"), 0), (2, Some("z"), 0), (3, None, 0)]);
        assert_eq!(today(&kept, &now, &["id", "v"], "v"), Today::Renamed("z".to_owned()));
        let described = ["id".to_owned()];
        let past = Past { kept: Some(&kept), now: &now, described: &described, commit_lsn: Lsn::new(50) };
        assert_eq!(past.former_names("z"), ["v"]);
    }
}
