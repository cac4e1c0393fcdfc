//! The engine's own stages, up to full batches, which are thrown away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pgsluice::batch::{Batch, Limits};
use pgsluice::config::Config;
use pgsluice::decode::{Decoded, Decoder};
use pgsluice::source::{Connection, Filled, ReplicationStream, StreamOptions, Waker};
use pgsluice_proto::Lsn;
use pgsluice_proto::command::{ProtoVersion, StartLogical};
use pgsluice_proto::frame::Frame;

use crate::common::ceiling::{Target, Transport};

const LIMITS: Limits = Limits { rows: 10_000, bytes: 16 * 1024 * 1024 };

pub fn drain(target: &Target) -> Result<Option<u64>> {
    let mut stream = open(target)?;
    let waker = Waker::new()?;
    let mut decoder = Decoder::new(Lsn::INVALID);
    let mut batch = Batch::default();
    let mut rows = 0;
    loop {
        stream.transmit(Instant::now())?;
        let filled = stream.fill()?;
        while let Some(frame) = stream.next_frame()? {
            match frame {
                Frame::PrimaryKeepalive(keepalive) => {
                    stream.feedback().handle_keepalive(&keepalive);
                    if keepalive.wal_end >= target.stop_at && !decoder.in_transaction() {
                        return Ok(Some(rows));
                    }
                }
                Frame::XLogData(frame) => {
                    match decoder.decode(frame.start_lsn, frame.data)? {
                        Decoded::Change(change) => {
                            batch.push(&change);
                            rows += 1;
                        }
                        Decoded::Begin(begin) => batch.begin(begin),
                        Decoded::Commit(commit) => batch.commit(commit),
                        Decoded::Truncate(truncate) => batch.push_truncate(truncate),
                        Decoded::Nothing => {}
                    }
                    if batch.is_full(LIMITS) {
                        batch.clear(LIMITS);
                    }
                }
            }
        }
        if filled == Filled::Drained {
            stream.wait_after_drain(&waker, Duration::from_secs(1), Instant::now())?;
        }
    }
}

fn open(target: &Target) -> Result<ReplicationStream> {
    let host = match target.transport {
        Transport::Tcp => "127.0.0.1".to_owned(),
        Transport::Unix => target.socket_dir.display().to_string(),
    };
    let dsn = format!("host={host} port={} dbname={} user=postgres sslmode=disable", target.port, target.database);
    let text = format!(
        "name = \"bench\"\n[source]\ndsn = \"{dsn}\"\n[target]\ndsn = \"{dsn}\"\n[tables]\ninclude = [\"*.*\"]\n"
    );
    let config = Config::parse(&text, "bench.toml".as_ref(), &|_| None).context("a configuration")?;
    let start = StartLogical {
        slot: &target.slot,
        start_lsn: Lsn::INVALID,
        proto_version: ProtoVersion::V4,
        publications: &[&target.publication],
        binary: true,
        streaming: false,
    };
    let options = StreamOptions { status_interval: Duration::from_secs(10) };
    Ok(Connection::connect(&config.source)?.start(start, options)?)
}
