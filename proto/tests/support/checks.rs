//! What must hold for any bytes at all, one function a fuzz target. The targets in `fuzz/` feed them new inputs, the
//! test `corpus` those that are kept.
//!
//! Every function takes the fuzzer's bytes as they are and gives them a meaning itself, so that a kept file is read the
//! same everywhere.

use std::time::Duration;

use pgsluice_proto::feedback::Feedback;
use pgsluice_proto::frame::{Frame, PrimaryKeepalive};
use pgsluice_proto::pgoutput::{Decoder, Message, OldTuple, Segments, Streamed, StreamedPart, Tuple};
use pgsluice_proto::wire::{self, Split};
use pgsluice_proto::{Lsn, PgTimestamp};

use crate::encode;

/// A target's name and its check.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: [Target; 5] =
    [("wire", wire), ("frame", frame), ("pgoutput", pgoutput), ("feedback", feedback), ("lsn", lsn)];

/// Above this, the cuts of one message would take longer than all that the fuzzer learns from them.
const CUT_BYTES_MAX: usize = 256;

/// Input: a count, as many chunk sizes of one byte, the stream. The sizes are gone through in turn; without any, the
/// stream comes in one piece.
///
/// Whatever the chunks, the messages are the stream's bytes in order with nothing lost, and `NeedsBytes` says the truth:
/// always more than there is, never more than the message turns out to have, and never less than before.
pub fn wire(input: &[u8]) {
    let Some((&sizes, rest)) = input.split_first() else { return };
    let (sizes, stream) = rest.split_at(rest.len().min(sizes.into()));
    let mut sizes = sizes.iter().map(|&size| usize::from(size).max(1)).cycle();
    let (mut unread, mut buffer, mut messages) = (stream, Vec::new(), Vec::new());
    let mut needed = 0;
    let framed = loop {
        match wire::split(&buffer) {
            Ok(Split::Whole(message)) => {
                let total = message.total_bytes();
                assert!(needed <= total && total <= buffer.len());
                messages.push(message.tag);
                messages.extend((u32::try_from(total - 1).expect("split bounds it")).to_be_bytes());
                messages.extend(message.body);
                buffer.drain(..total);
                needed = 0;
            }
            Ok(Split::NeedsBytes(bytes)) => {
                assert!(bytes > buffer.len() && bytes >= needed);
                needed = bytes;
                if unread.is_empty() {
                    break true;
                }
                let chunk = sizes.next().unwrap_or(unread.len()).min(unread.len());
                let (read, later) = unread.split_at(chunk);
                buffer.extend(read);
                unread = later;
            }
            Err(error) => {
                assert_eq!((error.lsn, error.offset), (Lsn::INVALID, 1));
                break false;
            }
        }
    };
    if !framed {
        let word = buffer[1..].first_chunk().expect("a length was read before it was refused");
        assert!(!(4..=0x3fff_ffff).contains(&i32::from_be_bytes(*word)));
    }
    messages.extend(buffer);
    messages.extend(unread);
    assert_eq!(messages, stream);
}

/// Input: the body of one CopyData. What decodes is what was there, to the byte.
pub fn frame(input: &[u8]) {
    match Frame::decode(input) {
        Ok(frame) => {
            let mut again = Vec::new();
            encode::frame(&frame, &mut again);
            assert_eq!(again, input);
            if let Frame::PrimaryKeepalive(_) = frame {
                for cut in 0..input.len() {
                    assert!(Frame::decode(&input[..cut]).is_err());
                }
            }
        }
        Err(error) => assert!(error.offset <= input.len(), "{error}"),
    }
}

/// Input: payloads, each after its length in two bytes; the last may be shorter than its length.
///
/// What decodes is what was there, to the byte, and neither less nor more of it decodes. What lies in a segment is, without its xid, the
/// same message outside of one.
pub fn pgoutput(mut input: &[u8]) {
    let (mut decoder, mut segments) = (Decoder::new(), Segments::new());
    while let Some((length, rest)) = input.split_first_chunk() {
        let (payload, rest) = rest.split_at(rest.len().min(u16::from_be_bytes(*length).into()));
        input = rest;
        if let Ok(Streamed::Part(part)) = segments.take(Lsn::new(7), payload) {
            part_is_ordinary(payload, &part);
        }
        let before = decoder.clone();
        match decoder.decode(Lsn::new(7), payload) {
            Ok(message) => {
                if payload.len() <= CUT_BYTES_MAX {
                    pgoutput_is_exact(&before, payload, &message);
                } else {
                    pgoutput_encodes_back(payload, &message);
                }
            }
            Err(error) => {
                assert!(error.offset <= payload.len() && error.lsn == Lsn::new(7), "{error}");
                return;
            }
        }
    }
}

/// The part stands in `payload`, and nothing but its xid is left out.
fn part_is_ordinary(payload: &[u8], part: &StreamedPart<'_>) {
    let ordinary = [&[part.tag], part.rest].concat();
    let mut decoder = Decoder::new();
    let message = decoder.decode(Lsn::new(7), &ordinary).expect("it decodes in a segment");
    pgoutput_encodes_back(&ordinary, &message);
    assert_eq!(matches!(message, Message::Relation(_)), part.is_relation);
    let xid = part.xid.map_or(Vec::new(), |xid| xid.0.to_be_bytes().to_vec());
    assert_eq!([&ordinary[..1], &xid, &ordinary[1..]].concat(), payload);
}

/// `message`, which `before` decodes from `payload`, is all of it, and `payload` is no more and no less than it.
pub fn pgoutput_is_exact(before: &Decoder, payload: &[u8], message: &Message<'_>) {
    pgoutput_encodes_back(payload, message);
    for cut in 0..payload.len() {
        match before.clone().decode(Lsn::INVALID, &payload[..cut]) {
            // The one message with an optional end: without the abort's LSN and time it is what `streaming 'on'` gets.
            Ok(Message::StreamAbort(abort)) if cut == 9 && abort.abort.is_none() => {}
            Ok(shorter) => panic!("the first {cut} bytes of {message:?} decode as {shorter:?}"),
            Err(error) => assert!(error.offset <= cut, "{error}"),
        }
    }
    for extra in [0, b'N', 0xff] {
        let longer = [payload, &[extra]].concat();
        let error = before.clone().decode(Lsn::INVALID, &longer).expect_err("a byte too many");
        assert!(error.offset <= longer.len(), "{error}");
    }
}

/// What `message` says is what stands in `payload`, to the byte, and its rows have as many cells as they say.
pub fn pgoutput_encodes_back(payload: &[u8], message: &Message<'_>) {
    let mut again = Vec::with_capacity(payload.len());
    encode::message(message, &mut again);
    assert_eq!(again, payload, "{message:?}");
    for tuple in tuples(message).into_iter().flatten() {
        let mut cells = tuple.cells();
        for left in (0..tuple.len()).rev() {
            assert!(cells.next().is_some() && cells.len() == left);
        }
        assert_eq!((cells.next(), tuple.is_empty()), (None, tuple.cells().next().is_none()));
    }
}

/// The rows of a message: the old one, the new one.
pub fn tuples<'a>(message: &Message<'a>) -> [Option<Tuple<'a>>; 2] {
    let row = |old| match old {
        OldTuple::Key(tuple) | OldTuple::Full(tuple) => tuple,
    };
    match message {
        Message::Insert(insert) => [None, Some(insert.new)],
        Message::Update(update) => [update.old.map(row), Some(update.new)],
        Message::Delete(delete) => [Some(row(delete.old)), None],
        _ => [None, None],
    }
}

/// Input: the start LSN, then steps of nine bytes, a kind and a number.
///
/// Against a model of it: flush and apply are the furthest position that was told and nothing else, write is the
/// furthest of all, neither goes back, and an update goes out exactly when one was asked for or the interval is over.
pub fn feedback(input: &[u8]) {
    let Some((start, mut steps)) = input.split_first_chunk() else { return };
    let start = Lsn::new(u64::from_be_bytes(*start));
    let interval = Duration::from_secs(10);
    let mut feedback = Feedback::new(start, interval, Duration::ZERO);
    let (mut told, mut seen, mut asked) = (start, start, false);
    let (mut now, mut last_at, mut next_at, mut sent) = (Duration::ZERO, Duration::ZERO, interval, (start, start));
    while let Some((step, rest)) = steps.split_first_chunk::<9>() {
        steps = rest;
        let number = u64::from_be_bytes(*step.last_chunk().expect("nine bytes hold eight"));
        let lsn = Lsn::new(number);
        match step[0] % 6 {
            0 => {
                feedback.handle_received(lsn);
                seen = seen.max(lsn);
            }
            kind @ (1 | 2) => {
                let reply_requested = kind == 2;
                let sent_at = PgTimestamp::from_micros(0);
                feedback.handle_keepalive(&PrimaryKeepalive { wal_end: lsn, sent_at, reply_requested });
                seen = seen.max(lsn);
                asked |= reply_requested;
            }
            3 => {
                if lsn > told {
                    // A durable position that moves is told after a tenth of the interval.
                    next_at = next_at.min(last_at + interval / 10);
                }
                feedback.set_flushed(lsn);
                told = told.max(lsn);
                seen = seen.max(lsn);
            }
            4 => now += Duration::from_millis(number % 25_000),
            _ => {
                feedback.send_now();
                asked = true;
            }
        }
        assert_eq!((feedback.received(), feedback.flushed()), (seen, told));
        let due = asked || now >= next_at;
        assert_eq!(feedback.poll_timeout() <= now, due);
        // Now and then nobody polls, and what is due stays due.
        if step[0] >= 0xc0 {
            continue;
        }
        let clock = PgTimestamp::from_micros(number as i64);
        let update = feedback.poll_transmit(now, clock);
        assert_eq!(update.is_some(), due);
        let Some(update) = update else { continue };
        assert_eq!((update.write_lsn, update.flush_lsn, update.apply_lsn), (seen, told, told));
        assert!(update.write_lsn >= sent.0 && update.flush_lsn >= sent.1 && update.write_lsn >= update.flush_lsn);
        assert_eq!((update.sent_at, update.reply_requested), (clock, false));
        assert_eq!(feedback.poll_transmit(now, clock), None);
        (sent, asked) = ((update.write_lsn, update.flush_lsn), false);
        (last_at, next_at) = (now, now + interval);

        let mut out = Vec::new();
        update.encode(&mut out);
        let Ok(Split::Whole(message)) = wire::split(&out) else { panic!("half a message: {out:?}") };
        assert_eq!((message.tag, message.total_bytes(), message.body.len()), (wire::COPY_DATA, out.len(), 34));
    }
}

/// Input: a text, and the eight bytes of a number.
///
/// A text is an LSN exactly where PostgreSQL's `pg_lsn` takes it, and then its display is the same number; every number
/// survives its display.
pub fn lsn(input: &[u8]) {
    if let Ok(text) = str::from_utf8(input) {
        let half = |digits: &[u8]| matches!(digits.len(), 1..=8) && digits.iter().all(u8::is_ascii_hexdigit);
        let halves: Vec<_> = input.split(|&byte| byte == b'/').collect();
        let legal = halves.len() == 2 && halves.into_iter().all(half);
        match text.parse::<Lsn>() {
            Ok(lsn) => {
                assert!(legal, "{text:?}");
                let padded = |text: &str| {
                    let (high, low) = text.split_once('/').expect("an LSN has a slash");
                    format!("{high:0>8}/{low:0>8}").to_ascii_uppercase()
                };
                assert_eq!(padded(text), padded(&lsn.to_string()));
            }
            Err(error) => assert!(!legal && error.to_string().contains(text), "{text:?}"),
        }
    }
    if let Some((number, _)) = input.split_first_chunk() {
        let lsn = Lsn::new(u64::from_be_bytes(*number));
        assert_eq!(lsn.to_string().parse(), Ok(lsn));
        assert_eq!(lsn.is_valid(), lsn.as_u64() != 0);
    }
}
