//! A replication connection until its stream starts: startup, authentication, commands.
//!
//! In: an [`Endpoint`] of the source. Out: answers to commands, and at last a [`ReplicationStream`].
//!
//! ```text
//!  connect ──► startup ──► trust | SCRAM-SHA-256 ──► ready ──command──► ready
//!                                                      └──START_REPLICATION──► CopyBoth: ReplicationStream
//! ```
//!
//! Why not the SQL client library: it knows neither `replication=database` nor CopyBoth.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use pgsluice_proto::command::{Command, CreateLogicalSlot, SlotSnapshot, StartLogical};
use pgsluice_proto::wire::{self, Split};
use pgsluice_proto::{Lsn, TimelineId};
use postgres_protocol::authentication::sasl::{self, ChannelBinding, ScramSha256};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::stream::{ReplicationStream, StreamOptions};
use super::transport::Transport;
use crate::config::{Endpoint, Role};
use crate::error::{Error, Kind, ServerError, Stage};
use crate::postgres::{self, NO_TIMEOUTS, PASSWORD_EXPOSED, PASSWORD_MISSING, SESSION_SETTINGS, SOURCE_SETTINGS};

/// One row of an answer, all values as text.
pub type Row = Vec<Option<String>>;

/// A database without an encoding holds any bytes. The server would refuse to send those that are no UTF-8, and the stream
/// would end there for ever, without a word of table or transaction: whoever reads them can say where they are.
const BYTES_AS_THEY_ARE: &str =
    "SELECT set_config('client_encoding', 'SQL_ASCII', false) WHERE current_setting('server_encoding') = 'SQL_ASCII'";

const COPY_BOTH_RESPONSE: u8 = b'W';
const READ_BYTES: usize = 64 * 1024;
/// Before its walsender answers START_REPLICATION, the server removes what an earlier one of the slot has spilled to its disk.
const START_LIMIT: Duration = Duration::from_secs(60);

/// What IDENTIFY_SYSTEM says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Shared by all servers that descend from one initdb.
    pub system_identifier: String,
    pub timeline: TimelineId,
    /// On a primary the end of flushed WAL, on a standby of replayed WAL.
    pub wal_position: Lsn,
}

/// A new slot.
#[derive(Clone, Debug)]
pub struct CreatedSlot {
    /// Transactions whose commit record starts at or after this are in the stream, all others are not.
    pub consistent_point: Lsn,
    /// The name of the snapshot that sees what the stream leaves out, where it was asked for. It lasts until the next
    /// command on the connection that made the slot.
    pub snapshot: Option<String>,
}

#[derive(Debug)]
pub struct Connection {
    transport: Transport,
    inbox: BytesMut,
    role: Role,
    backend_pid: i32,
    read_timeout: Duration,
    /// Of the CopyData that is being read, the bytes that have not come yet.
    copy_left: usize,
    /// Of the last COPY that has come to its end, as the server has counted them.
    copied_rows: Option<u64>,
}

impl Connection {
    /// Connects for replication, authenticates and applies the session settings.
    ///
    /// # Errors
    /// [`Kind::Unreachable`], [`Kind::Authentication`], or what the server reports.
    pub fn connect(endpoint: &Endpoint) -> Result<Connection, Error> {
        Connection::open(endpoint, &[("replication", "database")])
    }

    /// The same for SQL alone. What it has over the SQL client is [`Connection::read_copy`].
    pub fn connect_for_sql(endpoint: &Endpoint) -> Result<Connection, Error> {
        Connection::open(endpoint, &[])
    }

    fn open(endpoint: &Endpoint, parameters: &[(&str, &str)]) -> Result<Connection, Error> {
        let transport = Transport::connect(endpoint).map_err(|source| {
            let address = endpoint.address();
            Error::new(Stage::Source, Kind::Unreachable { role: endpoint.role, address, source })
        })?;
        let read_timeout = endpoint.connect_timeout;
        let mut connection = Connection {
            transport,
            inbox: BytesMut::new(),
            role: endpoint.role,
            backend_pid: 0,
            read_timeout,
            copy_left: 0,
            copied_rows: None,
        };
        connection.limit_reads(Some(read_timeout))?;
        connection.start_up(endpoint, parameters)?;
        connection.query(SESSION_SETTINGS)?;
        connection.query(SOURCE_SETTINGS)?;
        connection.query(NO_TIMEOUTS)?;
        connection.query(&postgres::notice_lost_client(endpoint.tcp_user_timeout, true))?;
        connection.query(BYTES_AS_THEY_ARE)?;
        Ok(connection)
    }

    /// The process that serves us, as in `pg_stat_replication.pid`.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    pub fn identify_system(&mut self) -> Result<Identity, Error> {
        let rows = self.query(&Command::IdentifySystem.to_string())?;
        let identity = rows.first().and_then(|row| {
            Some(Identity {
                system_identifier: text(row, 0)?.to_owned(),
                timeline: TimelineId(text(row, 1)?.parse().ok()?),
                wal_position: text(row, 2)?.parse().ok()?,
            })
        });
        identity.ok_or_else(|| self.protocol("IDENTIFY_SYSTEM has no such row"))
    }

    /// Where each timeline before `timeline` ended, oldest first.
    pub fn timeline_history(&mut self, timeline: TimelineId) -> Result<Vec<(TimelineId, Lsn)>, Error> {
        let rows = self.query(&Command::TimelineHistory(timeline).to_string())?;
        let content = rows.first().and_then(|row| text(row, 1));
        let history = content.and_then(parse_timeline_history);
        history.ok_or_else(|| self.protocol("TIMELINE_HISTORY has no history that can be read"))
    }

    /// Creates the slot; blocks until the server has seen every transaction that was open end. On a standby this also
    /// needs a running-xacts record from the primary.
    pub fn create_slot(&mut self, create: CreateLogicalSlot<'_>) -> Result<CreatedSlot, Error> {
        self.limit_reads(None)?;
        let rows = self.query(&Command::CreateLogicalSlot(create).to_string());
        self.limit_reads(Some(self.read_timeout))?;
        let rows = rows?;
        let row = rows.first();
        let snapshot = row.and_then(|row| text(row, 2)).map(str::to_owned);
        match row.and_then(|row| text(row, 1)?.parse().ok()) {
            Some(_) if snapshot.is_none() && create.snapshot == SlotSnapshot::Export => {
                Err(self.protocol("CREATE_REPLICATION_SLOT has no snapshot_name"))
            }
            Some(consistent_point) => Ok(CreatedSlot { consistent_point, snapshot }),
            None => Err(self.protocol("CREATE_REPLICATION_SLOT has no consistent_point")),
        }
    }

    /// Drops the slot, after waiting for whoever uses it.
    pub fn drop_slot(&mut self, slot: &str) -> Result<(), Error> {
        self.query(&Command::DropSlot { slot }.to_string()).map(drop)
    }

    /// Starts the stream.
    ///
    /// # Errors
    /// [`Kind::Lost`] after a minute without an answer, or what the server reports.
    pub fn start(mut self, start: StartLogical<'_>, options: StreamOptions) -> Result<ReplicationStream, Error> {
        let round_trip = self.measure_round_trip()?;
        self.read_timeout = START_LIMIT;
        self.limit_reads(Some(START_LIMIT))?;
        self.send(|out| frontend::query(&Command::StartLogical(start).to_string(), out))?;
        loop {
            match self.peek_tag()? {
                COPY_BOTH_RESPONSE => {
                    self.skip_message();
                    break;
                }
                _ => {
                    // Notices and settings; an error ends here.
                    if let Message::ReadyForQuery(_) = self.read_message()? {
                        return Err(self.protocol("START_REPLICATION ended without a stream"));
                    }
                }
            }
        }
        ReplicationStream::new(self.transport, self.inbox, start.start_lsn, round_trip, options, Instant::now())
            .map_err(|source| Error::new(Stage::Source, Kind::Lost { role: Role::Source, source }))
    }

    /// Starts a `COPY … TO STDOUT`; what it gives is then read with [`Connection::read_copy`] to its end.
    pub fn start_copy(&mut self, sql: &str) -> Result<(), Error> {
        self.copied_rows = None;
        // It may take long before the first row is found.
        self.limit_reads(None)?;
        self.send(|out| frontend::query(sql, out))?;
        loop {
            match self.read_message()? {
                Message::CopyOutResponse(_) => return Ok(()),
                Message::ReadyForQuery(_) => return Err(self.protocol("a COPY that gives nothing")),
                _ => {}
            }
        }
    }

    /// Adds to `out` what the COPY gives, until it holds `enough` bytes; false after the last. A row that is larger comes in
    /// pieces, so that it is never held as a whole.
    pub fn read_copy(&mut self, out: &mut BytesMut, enough: usize) -> Result<bool, Error> {
        while out.len() < enough {
            if self.copy_left == 0 && !self.next_copy_data()? {
                return Ok(false);
            }
            if self.inbox.is_empty() {
                self.fill_inbox()?;
            }
            let piece = self.copy_left.min(self.inbox.len()).min(enough - out.len());
            out.extend_from_slice(&self.inbox[..piece]);
            bytes::Buf::advance(&mut self.inbox, piece);
            self.copy_left -= piece;
        }
        Ok(true)
    }

    /// The rows of the COPY that was read to its end, as the server has counted them.
    pub fn copied_rows(&self) -> Result<u64, Error> {
        self.copied_rows.ok_or_else(|| self.protocol("a COPY that ends without a count of its rows"))
    }

    /// Goes to the body of the next CopyData; false where the COPY has ended.
    fn next_copy_data(&mut self) -> Result<bool, Error> {
        loop {
            let total =
                match wire::split(&self.inbox).map_err(|error| Error::new(Stage::Source, Kind::Decode(error)))? {
                    Split::Whole(message) => message.total_bytes(),
                    Split::NeedsBytes(bytes) => bytes,
                };
            match self.inbox.first() {
                Some(&wire::COPY_DATA) if self.inbox.len() >= wire::HEADER_BYTES => {
                    bytes::Buf::advance(&mut self.inbox, wire::HEADER_BYTES);
                    self.copy_left = total - wire::HEADER_BYTES;
                    return Ok(true);
                }
                Some(&wire::COPY_DATA) | None => self.fill_inbox()?,
                // CopyDone, the count of rows, or an error; notices may come as well.
                Some(_) => match self.read_message()? {
                    Message::ReadyForQuery(_) => return Ok(false),
                    Message::CommandComplete(body) => {
                        let tag = body.tag().map_err(|source| self.lost(source))?;
                        self.copied_rows = tag.strip_prefix("COPY ").and_then(|rows| rows.parse().ok());
                    }
                    _ => {}
                },
            }
        }
    }

    /// Runs one command or SQL text and returns the rows of its last answer.
    pub fn query(&mut self, command: &str) -> Result<Vec<Row>, Error> {
        self.send(|out| frontend::query(command, out))?;
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            match self.read_message_or_error()? {
                Ok(Message::RowDescription(_)) => rows.clear(),
                Ok(Message::DataRow(row)) => rows.push(self.parse_row(&row)?),
                Ok(Message::ReadyForQuery(_)) => break,
                Ok(_) => {}
                // ReadyForQuery still follows.
                Err(error) => failure = Some(error),
            }
        }
        failure.map_or(Ok(rows), Err)
    }

    fn parse_row(&self, row: &postgres_protocol::message::backend::DataRowBody) -> Result<Row, Error> {
        let buffer = row.buffer();
        let values = row
            .ranges()
            .map(|range| Ok(range.map(|range| String::from_utf8_lossy(&buffer[range]).into_owned())))
            .collect();
        values.map_err(|source| self.lost(source))
    }

    fn start_up(&mut self, endpoint: &Endpoint, parameters: &[(&str, &str)]) -> Result<(), Error> {
        let all = [
            ("user", endpoint.user.as_str()),
            ("database", endpoint.dbname.as_str()),
            ("application_name", endpoint.application_name.as_str()),
            ("client_encoding", "UTF8"),
        ];
        let all = all.into_iter().chain(parameters.iter().copied());
        self.send(|out| frontend::startup_message(all, out))?;
        loop {
            match self.read_message()? {
                Message::AuthenticationOk => break,
                Message::AuthenticationSasl(body) => {
                    let mut mechanisms = body.mechanisms();
                    let mut offered = false;
                    while let Some(name) = mechanisms.next().map_err(|source| self.lost(source))? {
                        offered |= name == sasl::SCRAM_SHA_256;
                    }
                    if !offered {
                        return Err(self.authentication("the server does not offer SCRAM-SHA-256"));
                    }
                    self.authenticate_scram(endpoint)?;
                }
                Message::AuthenticationCleartextPassword | Message::AuthenticationMd5Password(_) => {
                    return Err(self.authentication(PASSWORD_EXPOSED));
                }
                _ => return Err(self.authentication("the server asks for a method that is not supported")),
            }
        }
        loop {
            match self.read_message()? {
                Message::BackendKeyData(body) => self.backend_pid = body.process_id(),
                Message::ReadyForQuery(_) => return Ok(()),
                _ => {}
            }
        }
    }

    fn authenticate_scram(&mut self, endpoint: &Endpoint) -> Result<(), Error> {
        let Some(password) = &endpoint.password else {
            return Err(self.authentication(PASSWORD_MISSING));
        };
        let mut scram = ScramSha256::new(password.expose().as_bytes(), ChannelBinding::unsupported());
        self.send(|out| frontend::sasl_initial_response(sasl::SCRAM_SHA_256, scram.message(), out))?;
        let Message::AuthenticationSaslContinue(body) = self.read_message()? else {
            return Err(self.protocol("no SASL challenge where one must come"));
        };
        scram.update(body.data()).map_err(|error| self.authentication(&error.to_string()))?;
        self.send(|out| frontend::sasl_response(scram.message(), out))?;
        let Message::AuthenticationSaslFinal(body) = self.read_message()? else {
            return Err(self.protocol("no SASL outcome where one must come"));
        };
        scram.finish(body.data()).map_err(|error| self.authentication(&error.to_string()))
    }

    /// The least of a few empty round trips: what the network takes, not the server.
    fn measure_round_trip(&mut self) -> Result<Duration, Error> {
        const PROBES: usize = 3;
        let mut least = Duration::MAX;
        for _ in 0..PROBES {
            let start = Instant::now();
            self.query("SELECT")?;
            least = least.min(start.elapsed());
        }
        Ok(least)
    }

    fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<(), Error> {
        let mut out = BytesMut::new();
        write(&mut out).and_then(|()| self.transport.write_all(&out)).map_err(|source| self.lost(source))
    }

    /// The next message; an ErrorResponse is an error.
    fn read_message(&mut self) -> Result<Message, Error> {
        self.read_message_or_error()?
    }

    /// The next message; an ErrorResponse is the inner error, after which the connection goes on.
    fn read_message_or_error(&mut self) -> Result<Result<Message, Error>, Error> {
        loop {
            match Message::parse(&mut self.inbox).map_err(|source| self.lost(source))? {
                Some(Message::ErrorResponse(body)) => {
                    let error = ServerError::from_response(&body).map_err(|source| self.lost(source))?;
                    return Ok(Err(self.server(error)));
                }
                Some(message) => return Ok(Ok(message)),
                None => self.fill_inbox()?,
            }
        }
    }

    fn peek_tag(&mut self) -> Result<u8, Error> {
        loop {
            match wire::split(&self.inbox).map_err(|error| Error::new(Stage::Source, Kind::Decode(error)))? {
                Split::Whole(message) => return Ok(message.tag),
                Split::NeedsBytes(_) => self.fill_inbox()?,
            }
        }
    }

    /// Removes the message that `peek_tag` has found whole.
    fn skip_message(&mut self) {
        if let Ok(Split::Whole(message)) = wire::split(&self.inbox) {
            let bytes = message.total_bytes();
            bytes::Buf::advance(&mut self.inbox, bytes);
        }
    }

    fn fill_inbox(&mut self) -> Result<(), Error> {
        let mut chunk = [0; READ_BYTES];
        match self.transport.read(&mut chunk) {
            Ok(0) => Err(self.lost(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => {
                self.inbox.extend_from_slice(&chunk[..read]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let seconds = self.read_timeout.as_secs();
                Err(self.lost(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {seconds} s"))))
            }
            Err(error) => Err(self.lost(error)),
        }
    }

    fn limit_reads(&self, timeout: Option<Duration>) -> Result<(), Error> {
        self.transport.set_read_timeout(timeout).map_err(|source| self.lost(source))
    }

    fn lost(&self, source: io::Error) -> Error {
        Error::new(Stage::Source, Kind::Lost { role: self.role, source })
    }

    fn protocol(&self, what: &str) -> Error {
        Error::new(Stage::Source, Kind::Protocol { role: self.role, what: what.to_owned() })
    }

    fn authentication(&self, why: &str) -> Error {
        Error::new(Stage::Source, Kind::Authentication { role: self.role, why: why.to_owned() })
    }

    fn server(&self, error: ServerError) -> Error {
        match error.class() {
            "28" => self.authentication(&error.to_string()),
            _ => Error::new(Stage::Source, Kind::Server { role: self.role, error }),
        }
    }
}

fn text(row: &Row, column: usize) -> Option<&str> {
    row.get(column)?.as_deref()
}

/// Lines of timeline, switch point and reason, with comments and empty lines between (`timeline.c`).
fn parse_timeline_history(content: &str) -> Option<Vec<(TimelineId, Lsn)>> {
    content
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut fields = line.split_whitespace();
            Some((TimelineId(fields.next()?.parse().ok()?), fields.next()?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeline_history_is_read_with_its_comments() {
        let content = "1\t0/3000148\tno recovery target specified\n\n# note\n2\t1/A0\tbefore 2026-01-01\n";
        let expected = vec![(TimelineId(1), Lsn::new(0x300_0148)), (TimelineId(2), Lsn::new(0x1_0000_00A0))];
        assert_eq!(parse_timeline_history(content), Some(expected));
        assert_eq!(parse_timeline_history("1\tnowhere\tx\n"), None);
    }
}
