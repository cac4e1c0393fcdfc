//! Faults on the wire between a client and a server.
//!
//! In: connections to a port of ours. Out: the same bytes on a port of the server, until a test cuts, stalls or refuses.
//! Client bytes are passed on in whole messages of the frontend protocol, because the fault that matters most lies
//! between one message and its answer: `arm` names the message and the moment of the cut.
//!
//! ```text
//!   client ──message──► │BeforeForward│ ──► server          the server never sees it
//!                       ──► server │AfterForward│           the server acts on it, perhaps after the client is back
//!          ◄── │AfterAnswer│ ◄── ReadyForQuery ── server    the server has acted, the client never hears of it
//! ```
//!
//! TLS is declined here, as by a server without it: what is encrypted cannot be armed.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::wire::{self, BackendScanner, ReadyLedger};

const CHUNK_BYTES: usize = 64 * 1024;

/// The moment of a cut, as seen from the armed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CutPoint {
    /// Neither the message nor anything after it reaches the server.
    BeforeForward,
    /// The message and what belongs to it up to the next Sync is with the server, which will act on it; the client is
    /// cut off at once and may be back before the server is done.
    AfterForward,
    /// The server has answered all of it, ReadyForQuery included, and the client gets none of that. For messages which
    /// are answered so: queries, and Parse, Bind or Execute up to their Sync.
    AfterAnswer,
    /// No cut: as by [`Proxy::stall`], from just before the message.
    Stall,
    /// No cut: the query does nothing but fail, as one that `pg_cancel_backend` has met (57014).
    Fail,
}

/// What a query is replaced by that is to fail.
const CANCELED: &str = "DO $$ BEGIN RAISE EXCEPTION 'canceling statement' USING ERRCODE = '57014'; END $$";

/// A proxy on 127.0.0.1; dropping it closes its connections and its port.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    control: Arc<Control>,
    acceptor: JoinHandle<()>,
}

#[derive(Debug)]
struct Control {
    target_port: AtomicU16,
    armed: Mutex<Option<(Vec<u8>, CutPoint)>>,
    fired: AtomicBool,
    refusing: AtomicBool,
    accepted: AtomicUsize,
    /// Counts the cuts; a connection ends when the count moves on.
    cuts: watch::Sender<u64>,
    stalled: watch::Sender<bool>,
}

impl Proxy {
    /// Listens on a free port and forwards to `target_port` of 127.0.0.1.
    pub async fn start(target_port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let control = Arc::new(Control {
            target_port: AtomicU16::new(target_port),
            armed: Mutex::new(None),
            fired: AtomicBool::new(false),
            refusing: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
            cuts: watch::Sender::new(0),
            stalled: watch::Sender::new(false),
        });
        let acceptor = tokio::spawn(accept(listener, Arc::clone(&control)));
        Ok(Self { port, control, acceptor })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Like [`Server::dsn`](crate::Server::dsn), through this proxy.
    pub fn dsn(&self, db: &str) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={db} sslmode=disable", self.port)
    }

    /// Closes all connections, and leads new ones to another server: what people have in front of one that fails over.
    pub fn route_to(&self, target_port: u16) {
        self.control.target_port.store(target_port, Ordering::SeqCst);
        self.cut();
    }

    /// Closes all connections; new ones are let through.
    pub fn cut(&self) {
        self.control.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Closes all connections, and every new one at once, until `accept`.
    pub fn refuse(&self) {
        self.control.refusing.store(true, Ordering::SeqCst);
        self.cut();
    }

    pub fn accept(&self) {
        self.control.refusing.store(false, Ordering::SeqCst);
    }

    /// Passes nothing on in either direction, and keeps every connection open, until `resume`.
    pub fn stall(&self) {
        self.control.stalled.send_replace(true);
    }

    pub fn resume(&self) {
        self.control.stalled.send_replace(false);
    }

    /// Cuts the connection on which the next client message containing `needle` is sent. Once: later connections and
    /// messages are let through, unless armed again, which also forgets that it fired.
    pub fn arm(&self, needle: &[u8], at: CutPoint) {
        assert!(!needle.is_empty(), "every message contains nothing");
        self.control.fired.store(false, Ordering::SeqCst);
        *self.control.armed() = Some((needle.to_vec(), at));
    }

    /// Whether the armed fault has happened.
    pub fn fired(&self) -> bool {
        self.control.fired.load(Ordering::SeqCst)
    }

    /// How many connections have been accepted so far.
    pub fn accepted(&self) -> usize {
        self.control.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.acceptor.abort();
        self.cut();
    }
}

impl Control {
    fn armed(&self) -> MutexGuard<'_, Option<(Vec<u8>, CutPoint)>> {
        self.armed.lock().expect("no panic happens under this lock")
    }

    /// Disarms and returns the cut point if this message is the one.
    fn trigger(&self, message: &[u8]) -> Option<CutPoint> {
        let mut armed = self.armed();
        let hit = armed.as_ref().is_some_and(|(needle, _)| message.windows(needle.len()).any(|part| part == needle));
        if hit { armed.take().map(|(_, at)| at) } else { None }
    }

    async fn flowing(&self) {
        // The sender lives as long as `self`.
        self.stalled.subscribe().wait_for(|stalled| !stalled).await.ok();
    }
}

async fn accept(listener: TcpListener, control: Arc<Control>) {
    while let Ok((client, _)) = listener.accept().await {
        control.accepted.fetch_add(1, Ordering::SeqCst);
        // Before the flag is read: who is let through just as `refuse` is called sees its cut.
        let mut cuts = control.cuts.subscribe();
        if control.refusing.load(Ordering::SeqCst) {
            continue;
        }
        let control = Arc::clone(&control);
        tokio::spawn(async move {
            tokio::select! {
                // An error is the end of one side; there is nobody to tell but the other side, which sees it end.
                _ = Link::serve(client, control) => {}
                _ = cuts.changed() => {}
            }
        });
    }
}

/// How a connection ends by an armed cut, told by the client's side to the server's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// None yet.
    Open,
    /// The armed message is on its way: keep the answers from the client.
    Hold,
    /// Close once the server has said ReadyForQuery this often.
    AtReady(u64),
    /// Close the client, and let the server work off what it has.
    Drain,
}

/// One connection through the proxy.
#[derive(Debug)]
struct Link {
    control: Arc<Control>,
    ledger: Mutex<ReadyLedger>,
    ending: watch::Sender<Ending>,
}

impl Link {
    async fn serve(client: TcpStream, control: Arc<Control>) -> io::Result<()> {
        let server = TcpStream::connect(("127.0.0.1", control.target_port.load(Ordering::SeqCst))).await?;
        // Else the kernel's delays would be part of what is measured.
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, mut to_client) = client.into_split();
        let (from_server, mut to_server) = server.into_split();
        let mut from_client = BufReader::with_capacity(CHUNK_BYTES, from_client);
        let startup = wire::read_startup(&mut from_client, &mut to_client).await?;
        control.flowing().await;
        to_server.write_all(&startup).await?;
        let link = Self { control, ledger: Mutex::default(), ending: watch::Sender::new(Ending::Open) };
        // A side that ends drops its halves, and so closes its end of the other's; an armed cut closes both.
        let (upstream, downstream) =
            tokio::join!(link.pump_client(from_client, to_server), link.pump_server(from_server, to_client));
        upstream.and(downstream)
    }

    /// Client to server, message by message, until an end or a cut.
    async fn pump_client(
        &self,
        mut from_client: BufReader<OwnedReadHalf>,
        to_server: OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut to_server = BufWriter::with_capacity(CHUNK_BYTES, to_server);
        let mut cut_at = None;
        loop {
            let mut message = wire::read_message(&mut from_client).await?;
            self.control.flowing().await;
            cut_at = cut_at.or_else(|| self.control.trigger(&message));
            if cut_at == Some(CutPoint::Stall) {
                cut_at = None;
                self.control.stalled.send_replace(true);
                self.control.fired.store(true, Ordering::SeqCst);
                self.control.flowing().await;
            }
            if cut_at == Some(CutPoint::Fail) {
                cut_at = None;
                assert_eq!(message[0], b'Q', "what is to fail is a query");
                message = wire::query(CANCELED);
                self.control.fired.store(true, Ordering::SeqCst);
            }
            if cut_at == Some(CutPoint::BeforeForward) {
                to_server.flush().await?;
                self.end();
                return Ok(());
            }
            if cut_at.is_some() {
                // Before the message is out, lest the answer be faster.
                self.ending.send_replace(Ending::Hold);
            }
            self.ledger().sent(message[0]);
            to_server.write_all(&message).await?;
            let complete = cut_at.is_some() && !wire::waits_for_sync(message[0]);
            if complete || from_client.buffer().is_empty() {
                to_server.flush().await?;
            }
            if complete && cut_at == Some(CutPoint::AfterForward) {
                self.end();
                return Ok(());
            }
            if complete {
                let expected = self.ledger().expected;
                self.ending.send_replace(Ending::AtReady(expected));
                // The server's side ends it. Both halves stay open until then.
                self.ended().await;
                return Ok(());
            }
        }
    }

    /// Server to client, as it comes, until an end or a cut.
    async fn pump_server(&self, mut from_server: OwnedReadHalf, to_client: OwnedWriteHalf) -> io::Result<()> {
        let mut to_client = Some(to_client);
        let mut endings = self.ending.subscribe();
        let mut scanner = BackendScanner::default();
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let ending = *endings.borrow_and_update();
            match ending {
                Ending::AtReady(expected) if self.ledger().seen >= expected => break,
                // Dropping it closes the client's connection; the server's answers are read and forgotten.
                Ending::Drain => to_client = None,
                Ending::Open | Ending::Hold | Ending::AtReady(_) => {}
            }
            let bytes = tokio::select! {
                count = from_server.read(&mut chunk) => &chunk[..count?],
                _ = endings.changed() => continue,
            };
            if bytes.is_empty() {
                break;
            }
            scanner.scan(bytes, |tag| self.ledger().received(tag));
            self.control.flowing().await;
            let open = *self.ending.borrow() == Ending::Open;
            if let (true, Some(to_client)) = (open, to_client.as_mut()) {
                to_client.write_all(bytes).await?;
            }
        }
        if *self.ending.borrow() != Ending::Open {
            self.end();
        }
        Ok(())
    }

    /// Both sides end by the armed cut.
    fn end(&self) {
        self.ending.send_replace(Ending::Drain);
        self.control.fired.store(true, Ordering::SeqCst);
    }

    async fn ended(&self) {
        // The sender lives as long as `self`.
        self.ending.subscribe().wait_for(|ending| *ending == Ending::Drain).await.ok();
    }

    fn ledger(&self) -> MutexGuard<'_, ReadyLedger> {
        self.ledger.lock().expect("no panic happens under this lock")
    }
}
