//! The running replication stream: paced reads, frames, feedback.
//!
//! In: the socket of a connection in CopyBoth, and what is durable on the target. Out: frames in their order.
//!
//! **Always holds:**
//! - The thread that owns the stream never waits for the target: every wait here ends at the next status update.
//! - At most [`GULP_BYTES`] are buffered, or one message if that is larger.
//! - A frame that was returned is not returned again, and none is left out.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use pgsluice_proto::feedback::Feedback;
use pgsluice_proto::frame::Frame;
use pgsluice_proto::wire::{self, Split};
use pgsluice_proto::{Lsn, PgTimestamp};
use postgres_protocol::message::backend::Message;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use super::pacing::{Pacer, Wait};
use super::transport::{Path, Transport};
use crate::config::Role;
use crate::error::{Error, Kind, ServerError, Stage};

/// What one read may bring. Large enough that a drain of a full window is few calls, small enough to stay in cache.
const GULP_BYTES: usize = 256 * 1024;

/// A small window fills within a short pause, and the walsender's rows coalesce while it is closed.
const WINDOW_BYTES: usize = 64 * 1024;

/// Above this round trip a small window would throttle the stream, so the kernel sizes it.
const SMALL_WINDOW_ROUND_TRIP_MAX: Duration = Duration::from_millis(1);

/// How long the walsender may take to end its half of the stream. One amid a large transaction takes longer, and has
/// then read our last update all the same.
const FAREWELL_MAX: Duration = Duration::from_millis(300);

/// The walsender refills the window while a drain empties it, and a drain brings several windows.
const LOOPBACK_PAUSE_MAX: Duration = Duration::from_millis(8);
/// Over a link a drain brings what the window held, and whatever follows comes a round trip later: there is one window a pause, so
/// the longest pause decides what passes.
const LINK_PAUSE_MAX: Duration = Duration::from_millis(1);
/// A Unix socket has no slow state, and over a window that the kernel sizes rows coalesce less: a short pause only saves wake-ups.
const SHORT_PAUSE_MAX: Duration = Duration::from_micros(200);

#[derive(Clone, Copy, Debug)]
pub struct StreamOptions {
    /// Silence towards the walsender never lasts longer; far below its `wal_sender_timeout`.
    pub status_interval: Duration,
}

/// Ends the waits of a [`ReplicationStream`] from other threads.
#[derive(Clone, Debug)]
pub struct Waker(Arc<rustix::fd::OwnedFd>);

impl Waker {
    /// # Errors
    /// If the process has no file descriptors left.
    pub fn new() -> io::Result<Waker> {
        Ok(Waker(Arc::new(rustix::event::eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)))
    }

    pub fn wake(&self) {
        // The only failure is a counter that is full, which wakes as well.
        let full_counter_wakes_too = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        debug_assert!(full_counter_wakes_too.is_ok() || full_counter_wakes_too == Err(rustix::io::Errno::AGAIN));
    }

    /// Waits until it wakes, or there is something to be read from `other`, at most so long.
    ///
    /// # Errors
    /// What the system reports.
    pub fn wait(&self, other: Option<&rustix::fd::OwnedFd>, at_most: Duration) -> io::Result<()> {
        let timeout = Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: at_most.subsec_nanos().into() };
        let other = other.unwrap_or(&self.0);
        let mut fds = [PollFd::new(&self.0, PollFlags::IN), PollFd::new(other, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if fds[0].revents().contains(PollFlags::IN) {
            self.reset();
        }
        Ok(())
    }

    fn reset(&self) {
        let mut counter = [0; 8];
        // Empty is what we want.
        let empty_is_fine = rustix::io::read(&self.0, &mut counter);
        debug_assert!(empty_is_fine.is_ok() || empty_is_fine == Err(rustix::io::Errno::AGAIN));
    }
}

/// What a read has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// More may be waiting in the socket.
    More,
    /// The socket is empty.
    Drained,
}

#[derive(Debug)]
pub struct ReplicationStream {
    transport: Transport,
    /// `buffer[start..end]` has been read and not returned yet.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    outbox: Vec<u8>,
    feedback: Feedback,
    pacer: Pacer,
    opened_at: Instant,
    /// Of the cycle that runs: the bytes it has brought, and when the one before ended.
    cycle_bytes: usize,
    cycle_since: Instant,
}

impl ReplicationStream {
    pub(super) fn new(
        transport: Transport,
        inbox: BytesMut,
        start_lsn: Lsn,
        round_trip: Duration,
        options: StreamOptions,
        now: Instant,
    ) -> io::Result<ReplicationStream> {
        transport.set_nonblocking()?;
        let small_window = round_trip <= SMALL_WINDOW_ROUND_TRIP_MAX;
        if small_window {
            transport.set_receive_buffer(WINDOW_BYTES)?;
        }
        let pause_max = pause_max(transport.path()?, small_window);
        let mut buffer = vec![0; GULP_BYTES.max(inbox.len())];
        buffer[..inbox.len()].copy_from_slice(&inbox);
        Ok(ReplicationStream {
            transport,
            buffer,
            start: 0,
            end: inbox.len(),
            outbox: Vec::new(),
            feedback: Feedback::new(start_lsn, options.status_interval, Duration::ZERO),
            pacer: Pacer::new(WINDOW_BYTES, pause_max),
            opened_at: now,
            cycle_bytes: 0,
            cycle_since: now,
        })
    }

    /// A stream that has just begun on a socket whose other end plays the walsender.
    #[cfg(test)]
    pub fn begun(
        socket: std::os::unix::net::UnixStream,
        start_lsn: Lsn,
        options: StreamOptions,
        now: Instant,
    ) -> io::Result<ReplicationStream> {
        ReplicationStream::new(Transport::Unix(socket), BytesMut::new(), start_lsn, Duration::ZERO, options, now)
    }

    /// The positions that the next status update reports.
    pub fn feedback(&mut self) -> &mut Feedback {
        &mut self.feedback
    }

    /// Reads what the socket has, as far as the buffer takes it.
    ///
    /// # Errors
    /// [`Kind::Lost`] where the connection has ended.
    pub fn fill(&mut self) -> Result<Filled, Error> {
        self.make_room();
        // Frames that were read before have to be taken first; a read into no room would look like the end.
        if self.end == self.buffer.len() {
            return Ok(Filled::More);
        }
        loop {
            match self.transport.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => {
                    self.end += read;
                    self.cycle_bytes += read;
                    if self.end == self.buffer.len() {
                        return Ok(Filled::More);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Filled::Drained),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }

    /// The next whole frame of those that were read, or `None` where more has to be read first.
    ///
    /// # Errors
    /// What the server reports, the end of the stream, or bytes that do not parse.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, Error> {
        loop {
            let unread = &self.buffer[self.start..self.end];
            let Split::Whole(message) = wire::split(unread).map_err(decode_error)? else { return Ok(None) };
            let total = message.total_bytes();
            match message.tag {
                wire::COPY_DATA => {
                    let body = self.start + wire::HEADER_BYTES..self.start + total;
                    self.start += total;
                    return Frame::decode(&self.buffer[body]).map(Some).map_err(decode_error);
                }
                wire::NOTICE_RESPONSE => {
                    check_notice(&unread[..total])?;
                    self.start += total;
                }
                wire::PARAMETER_STATUS => self.start += total,
                wire::ERROR_RESPONSE => return Err(server_error(&unread[..total])),
                wire::COPY_DONE | wire::COMMAND_COMPLETE | wire::READY_FOR_QUERY => {
                    return Err(lost(io::Error::new(io::ErrorKind::ConnectionAborted, "the server ended the stream")));
                }
                tag => {
                    let what = format!("message {:?} in a replication stream", char::from(tag));
                    return Err(Error::new(Stage::Source, Kind::Protocol { role: Role::Source, what }));
                }
            }
        }
    }

    /// Sends a status update if one is due, and whatever could not be sent before.
    pub fn transmit(&mut self, now: Instant) -> Result<(), Error> {
        let clock = PgTimestamp::from_system_time(SystemTime::now());
        if let Some(update) = self.feedback.poll_transmit(now - self.opened_at, clock) {
            update.encode(&mut self.outbox);
        }
        while !self.outbox.is_empty() {
            match self.transport.write(&self.outbox) {
                Ok(written) => drop(self.outbox.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }

    /// After a drain: waits for input, or pauses, `at_most` so long, or until the waker or the next status update ends
    /// it.
    pub fn wait_after_drain(&mut self, waker: &Waker, at_most: Duration, now: Instant) -> Result<(), Error> {
        let wait = self.pacer.after_drain(self.cycle_bytes, now - self.cycle_since);
        self.cycle_bytes = 0;
        self.cycle_since = now;
        match wait {
            Wait::ForInput => self.poll(waker, true, at_most, now),
            Wait::Pause(pause) => self.poll(waker, false, pause.min(at_most), now),
        }
    }

    /// Waits for the waker or the next status update, and leaves the input where it is.
    pub fn wait_for_waker(&mut self, waker: &Waker, at_most: Duration, now: Instant) -> Result<(), Error> {
        self.poll(waker, false, at_most, now)
    }

    /// Sends a last status update, and behind it the end of our half of the stream.
    pub fn send_last_update(&mut self, now: Instant) -> Result<(), Error> {
        self.feedback.send_now();
        self.transmit(now)?;
        wire::put_copy_done(&mut self.outbox);
        self.transmit(now)
    }

    /// After the last update: waits a moment for the walsender to end its half of the stream.
    ///
    /// A socket that is closed with unread input resets the connection, and the walsender would lose the update with it.
    pub fn close(mut self, waker: &Waker) -> Result<(), Error> {
        let mut now = Instant::now();
        let deadline = now + FAREWELL_MAX;
        while now < deadline {
            // What still comes is of no use, and an error is the end that is waited for.
            match self.farewell(now) {
                Ok(()) => self.poll(waker, true, deadline - now, now)?,
                Err(_) => return Ok(()),
            }
            now = Instant::now();
        }
        Ok(())
    }

    fn farewell(&mut self, now: Instant) -> Result<(), Error> {
        self.transmit(now)?;
        while self.fill()? == Filled::More {
            while self.next_frame()?.is_some() {}
        }
        while self.next_frame()?.is_some() {}
        Ok(())
    }

    fn poll(&mut self, waker: &Waker, input: bool, at_most: Duration, now: Instant) -> Result<(), Error> {
        let until_status = self.feedback.poll_timeout().saturating_sub(now - self.opened_at);
        let timeout = until_status.min(at_most);
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let mut flags = PollFlags::empty();
        if input {
            flags |= PollFlags::IN;
        }
        if !self.outbox.is_empty() {
            flags |= PollFlags::OUT;
        }
        let mut fds = [PollFd::new(&waker.0, PollFlags::IN), PollFd::new(&self.transport, flags)];
        // A socket without flags would still end the wait with POLLHUP, in a pause as well as before a locked table.
        let watched = if flags.is_empty() { 1 } else { 2 };
        match rustix::event::poll(&mut fds[..watched], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(lost(error.into())),
        }
        if fds[0].revents().contains(PollFlags::IN) {
            waker.reset();
        }
        Ok(())
    }

    /// Moves what is unread to the front, and grows the buffer for a message that does not fit.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let needed = match wire::split(&self.buffer[..self.end]) {
            Ok(Split::NeedsBytes(bytes)) => bytes,
            // Whole messages are returned, and broken ones refused, before more is needed.
            Ok(Split::Whole(_)) | Err(_) => 0,
        };
        let wanted = needed.max(GULP_BYTES);
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        } else if self.buffer.len() > wanted && self.end <= wanted {
            self.buffer.truncate(wanted);
            self.buffer.shrink_to_fit();
        }
    }
}

/// The longest time between two drains.
fn pause_max(path: Path, small_window: bool) -> Duration {
    match (path, small_window) {
        (Path::Unix, _) | (Path::Loopback | Path::Link, false) => SHORT_PAUSE_MAX,
        (Path::Loopback, true) => LOOPBACK_PAUSE_MAX,
        (Path::Link, true) => LINK_PAUSE_MAX,
    }
}

fn lost(source: io::Error) -> Error {
    Error::new(Stage::Source, Kind::Lost { role: Role::Source, source })
}

fn decode_error(error: pgsluice_proto::DecodeError) -> Error {
    Error::new(Stage::Source, Kind::Decode(error))
}

fn server_error(message: &[u8]) -> Error {
    let parsed = match Message::parse(&mut BytesMut::from(message)) {
        Ok(Some(Message::ErrorResponse(body))) => ServerError::from_response(&body),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "an ErrorResponse that is none")),
        Err(error) => Err(error),
    };
    match parsed {
        Ok(error) if error.code == UNDEFINED_OBJECT => publication_missing(&error),
        Ok(error) => Error::new(Stage::Source, Kind::Server { role: Role::Source, error }),
        Err(error) => lost(error),
    }
}

/// From release 18 on the output plugin warns of a publication that does not exist at this point of the WAL, and leaves
/// out the rows that follow. Before, that is an error (`LoadPublications` in `pgoutput.c`).
const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
const UNDEFINED_OBJECT: &str = "42704";

/// # Errors
/// A refusal if the server says that it leaves out rows.
fn check_notice(message: &[u8]) -> Result<(), Error> {
    let Ok(Some(Message::NoticeResponse(body))) = Message::parse(&mut BytesMut::from(message)) else { return Ok(()) };
    let notice = ServerError::from_fields(body.fields()).map_err(lost)?;
    if notice.code == OBJECT_NOT_IN_PREREQUISITE_STATE { Err(publication_missing(&notice)) } else { Ok(()) }
}

fn publication_missing(said: &ServerError) -> Error {
    Error::refused(
        Stage::Source,
        format!("the source cannot send what follows: {said}"),
        "the publication was dropped, or made after the slot: rows written without it are not in the stream; \
         `pgsluice teardown`, `pgsluice setup`, and copy the tables again",
    )
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_a_walsender_on_this_machine_is_left_alone_for_long() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let loopback = Transport::Tcp(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        assert_eq!(loopback.path().unwrap(), Path::Loopback);
        assert_eq!(pause_max(Path::Loopback, true), LOOPBACK_PAUSE_MAX);
        // One window a pause has to be many times the rate at which pausing begins.
        let bytes_per_s = WINDOW_BYTES as f64 / pause_max(Path::Link, true).as_secs_f64();
        assert!(bytes_per_s > 50e6, "{bytes_per_s}");
        for path in [Path::Unix, Path::Loopback, Path::Link] {
            assert_eq!(pause_max(path, false), SHORT_PAUSE_MAX);
        }
    }
}
