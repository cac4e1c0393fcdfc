//! Readers that only read: what the walsender can give. They share no code with the engine.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use pgsluice_proto::Lsn;
use rustix::event::{PollFd, PollFlags, poll};
use socket2::SockRef;

const WINDOW: usize = 64 * 1024;
const PAUSE_MAX: Duration = Duration::from_millis(8);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Unix,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Transport::Tcp => "TCP",
            Transport::Unix => "Unix",
        })
    }
}

/// What to drain.
#[derive(Clone, Debug)]
pub struct Target {
    pub transport: Transport,
    pub port: u16,
    pub socket_dir: PathBuf,
    pub database: String,
    pub slot: String,
    pub publication: String,
    /// The drain ends with the first frame at or past this.
    pub stop_at: Lsn,
}

trait Stream: Read + Write + AsFd {
    fn set_nonblocking(&self) -> io::Result<()>;

    /// Until there is input.
    fn wait(&self) -> io::Result<()> {
        poll(&mut [PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN)], None)?;
        Ok(())
    }
}

impl Stream for TcpStream {
    fn set_nonblocking(&self) -> io::Result<()> {
        SockRef::from(self).set_recv_buffer_size(WINDOW)?;
        TcpStream::set_nonblocking(self, true)
    }
}

impl Stream for UnixStream {
    fn set_nonblocking(&self) -> io::Result<()> {
        UnixStream::set_nonblocking(self, true)
    }
}

/// Pauses that grow and shrink with what a drain brings.
pub fn adaptive(target: &Target) -> Result<Option<u64>> {
    let mut pause = Duration::from_micros(500);
    drain(target, move |bytes| {
        if bytes < 4 * WINDOW {
            pause = pause.mul_f64(1.25).min(PAUSE_MAX);
        } else if bytes > 8 * WINDOW {
            pause = pause.mul_f64(0.8);
        }
        pause
    })
}

/// Reads whatever is there as soon as it is there.
pub fn eager(target: &Target) -> Result<Option<u64>> {
    drain(target, |_| Duration::ZERO)
}

/// A pause that is right for a Unix socket, where it only saves wake-ups.
pub fn short_pause(target: &Target) -> Result<Option<u64>> {
    drain(target, |_| Duration::from_micros(150))
}

fn drain(target: &Target, mut pause: impl FnMut(usize) -> Duration) -> Result<Option<u64>> {
    let mut stream = open(target)?;
    let mut buffer = vec![0_u8; 1 << 20];
    let mut held = 0;
    loop {
        let mut cycle = 0;
        loop {
            match stream.read(&mut buffer[held..]) {
                Ok(0) => bail!("the stream has ended"),
                Ok(read) => {
                    cycle += read;
                    held += read;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
            let (used, ended) = skip_messages(&buffer[..held], target.stop_at.as_u64())?;
            buffer.copy_within(used..held, 0);
            held -= used;
            if ended {
                return Ok(None);
            }
        }
        match pause(cycle) {
            Duration::ZERO => stream.wait()?,
            pause => sleep(pause),
        }
    }
}

/// Steps over whole messages; true at a keepalive at or past the end.
fn skip_messages(buffer: &[u8], stop_at: u64) -> Result<(usize, bool)> {
    let mut used = 0;
    while let Some(header) = buffer[used..].first_chunk::<5>() {
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize + 1;
        let Some(message) = buffer[used..].get(..length) else { break };
        ensure!(header[0] == b'd', "message {:?}", char::from(header[0]));
        if message[5] == b'k' && message[6..].first_chunk().is_some_and(|lsn| u64::from_be_bytes(*lsn) >= stop_at) {
            return Ok((used, true));
        }
        used += length;
    }
    Ok((used, false))
}

fn open(target: &Target) -> Result<Box<dyn Stream>> {
    let mut stream: Box<dyn Stream> = match target.transport {
        Transport::Tcp => Box::new(TcpStream::connect(("127.0.0.1", target.port))?),
        Transport::Unix => Box::new(UnixStream::connect(target.socket_dir.join(format!(".s.PGSQL.{}", target.port)))?),
    };
    let mut startup = vec![0, 3, 0, 0];
    for text in ["user", "postgres", "database", &target.database, "replication", "database", ""] {
        startup.extend(text.as_bytes());
        startup.push(0);
    }
    send(&mut stream, None, &startup)?;
    wait_for_tag(&mut stream, b'Z')?;
    let start = format!(
        "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '4', publication_names '{}', binary 'true')\0",
        target.slot, target.publication
    );
    send(&mut stream, Some(b'Q'), start.as_bytes())?;
    wait_for_tag(&mut stream, b'W')?;
    stream.set_nonblocking()?;
    Ok(stream)
}

fn send(stream: &mut Box<dyn Stream>, tag: Option<u8>, body: &[u8]) -> Result<()> {
    let mut message: Vec<u8> = tag.into_iter().collect();
    message.extend((body.len() as u32 + 4).to_be_bytes());
    message.extend(body);
    Ok(stream.write_all(&message)?)
}

/// Reads message by message, so that nothing of the stream is taken that follows.
fn wait_for_tag(stream: &mut Box<dyn Stream>, tag: u8) -> Result<()> {
    loop {
        let mut header = [0; 5];
        stream.read_exact(&mut header)?;
        let mut body = vec![0; u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize - 4];
        stream.read_exact(&mut body)?;
        ensure!(header[0] != b'E', "{}", String::from_utf8_lossy(&body));
        if header[0] == tag {
            return Ok(());
        }
    }
}
