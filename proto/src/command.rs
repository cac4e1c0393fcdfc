//! The replication commands as text ("Streaming Replication Protocol", "Logical Streaming Replication Parameters").
//!
//! A walsender parses these with a grammar of its own (`repl_gram.y`): identifiers stand in double quotes, values in
//! single quotes, each doubled inside; there are no parameters and no escapes.

use std::fmt::{self, Write as _};

use crate::{Lsn, TimelineId};

/// A command for the simple-query protocol of a replication connection; `Display` gives its text.
#[derive(Clone, Copy, Debug)]
pub enum Command<'a> {
    IdentifySystem,
    /// Asks where a timeline left its predecessors.
    TimelineHistory(TimelineId),
    CreateLogicalSlot(CreateLogicalSlot<'a>),
    DropSlot {
        slot: &'a str,
    },
    StartLogical(StartLogical<'a>),
}

#[derive(Clone, Copy, Debug)]
pub struct CreateLogicalSlot<'a> {
    pub slot: &'a str,
    /// It goes with the connection that makes it.
    pub temporary: bool,
    pub snapshot: SlotSnapshot,
    /// 15 and later take options in parentheses; the older keywords end with 14.
    pub server_major: u32,
}

/// What becomes of the snapshot that is consistent with the start of a new slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotSnapshot {
    /// Other sessions can adopt it until the next command on this connection.
    Export,
    Nothing,
}

/// `START_REPLICATION … LOGICAL` with the plugin `pgoutput`.
#[derive(Clone, Copy, Debug)]
pub struct StartLogical<'a> {
    pub slot: &'a str,
    /// Transactions whose commit record ends at or before this are not sent. Where it lies below the slot's
    /// `confirmed_flush_lsn`, the server silently starts from there instead.
    pub start_lsn: Lsn,
    pub proto_version: ProtoVersion,
    pub publications: &'a [&'a str],
    /// Values come in the types' binary format, each where its type has one.
    pub binary: bool,
    /// Large transactions come in segments before they have committed, from [`ProtoVersion::V2`] on.
    pub streaming: bool,
}

/// Version of the logical replication protocol, by the server that speaks it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProtoVersion {
    /// PostgreSQL 10.
    V1 = 1,
    /// PostgreSQL 14: streaming of transactions in progress.
    V2 = 2,
    /// PostgreSQL 15: two-phase commits.
    V3 = 3,
    /// PostgreSQL 16: parallel streaming.
    V4 = 4,
}

impl ProtoVersion {
    /// The newest version that a server of this major release speaks.
    pub fn newest_of(server_major: u32) -> ProtoVersion {
        match server_major {
            0..=13 => ProtoVersion::V1,
            14 => ProtoVersion::V2,
            15 => ProtoVersion::V3,
            16.. => ProtoVersion::V4,
        }
    }
}

impl fmt::Display for Command<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::IdentifySystem => f.write_str("IDENTIFY_SYSTEM"),
            Command::TimelineHistory(timeline) => write!(f, "TIMELINE_HISTORY {timeline}"),
            Command::CreateLogicalSlot(create) => create.fmt(f),
            Command::DropSlot { slot } => write!(f, "DROP_REPLICATION_SLOT {} WAIT", Quoted(slot, '"')),
            Command::StartLogical(start) => start.fmt(f),
        }
    }
}

impl fmt::Display for CreateLogicalSlot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let temporary = if self.temporary { " TEMPORARY" } else { "" };
        write!(f, "CREATE_REPLICATION_SLOT {}{temporary} LOGICAL \"pgoutput\"", Quoted(self.slot, '"'))?;
        f.write_str(match (self.server_major >= 15, self.snapshot) {
            (true, SlotSnapshot::Export) => " (SNAPSHOT 'export')",
            (true, SlotSnapshot::Nothing) => " (SNAPSHOT 'nothing')",
            (false, SlotSnapshot::Export) => " EXPORT_SNAPSHOT",
            (false, SlotSnapshot::Nothing) => " NOEXPORT_SNAPSHOT",
        })
    }
}

impl fmt::Display for StartLogical<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The list is one value that SplitIdentifierString takes apart, so its names are quoted twice over.
        let publications =
            self.publications.iter().map(|name| Quoted(name, '"').to_string()).collect::<Vec<_>>().join(",");
        write!(
            f,
            "START_REPLICATION SLOT {} LOGICAL {} (\"proto_version\" '{}', \"publication_names\" {}",
            Quoted(self.slot, '"'),
            self.start_lsn,
            self.proto_version as u8,
            Quoted(&publications, '\''),
        )?;
        if self.binary {
            f.write_str(", \"binary\" 'true'")?;
        }
        if self.streaming && self.proto_version >= ProtoVersion::V2 {
            f.write_str(", \"streaming\" 'on'")?;
        }
        f.write_char(')')
    }
}

/// A text between two quotes, with the quotes inside doubled.
struct Quoted<'a>(&'a str, char);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Quoted(text, quote) = *self;
        f.write_char(quote)?;
        for part in text.split_inclusive(quote) {
            f.write_str(part)?;
            if part.ends_with(quote) {
                f.write_char(quote)?;
            }
        }
        f.write_char(quote)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_quotes_names_for_both_grammars() {
        let start = StartLogical {
            slot: "s",
            start_lsn: Lsn::new(0x1_0000_00FF),
            proto_version: ProtoVersion::newest_of(16),
            publications: &["a\"b", "it's"],
            binary: true,
            streaming: false,
        };
        let head =
            r#"START_REPLICATION SLOT "s" LOGICAL 1/FF ("proto_version" '4', "publication_names" '"a""b","it''s"'"#;
        assert_eq!(Command::StartLogical(start).to_string(), format!(r#"{head}, "binary" 'true')"#));
        let start = StartLogical { binary: false, streaming: true, ..start };
        assert_eq!(Command::StartLogical(start).to_string(), format!(r#"{head}, "streaming" 'on')"#));
        let start = StartLogical { proto_version: ProtoVersion::V1, ..start };
        assert!(!Command::StartLogical(start).to_string().contains("streaming"));
    }

    #[test]
    fn create_speaks_the_grammar_of_the_server() {
        let create = |server_major, snapshot| {
            let create = CreateLogicalSlot { slot: "s", temporary: false, snapshot, server_major };
            Command::CreateLogicalSlot(create).to_string()
        };
        let head = r#"CREATE_REPLICATION_SLOT "s" LOGICAL "pgoutput""#;
        assert_eq!(create(14, SlotSnapshot::Nothing), format!("{head} NOEXPORT_SNAPSHOT"));
        assert_eq!(create(14, SlotSnapshot::Export), format!("{head} EXPORT_SNAPSHOT"));
        assert_eq!(create(18, SlotSnapshot::Nothing), format!("{head} (SNAPSHOT 'nothing')"));
        assert_eq!(create(15, SlotSnapshot::Export), format!("{head} (SNAPSHOT 'export')"));
        let temporary =
            CreateLogicalSlot { slot: "s", temporary: true, snapshot: SlotSnapshot::Export, server_major: 18 };
        assert_eq!(
            Command::CreateLogicalSlot(temporary).to_string(),
            r#"CREATE_REPLICATION_SLOT "s" TEMPORARY LOGICAL "pgoutput" (SNAPSHOT 'export')"#
        );
    }
}
