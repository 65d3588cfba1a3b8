//! `sandgate outbox`: what waits for the clouds, and how it is kept.

use std::time::Duration;

use bytesize::ByteSize;
use sandgate::outbox::Drops;
use sandgate::status::{SessionReport, Status};
use sandgate::text::{count, visible};

use crate::say::say;

/// Prints the outboxes; `later` is the status after this time, for the rates.
pub(super) fn print(before: &Status, later: &Status, time: Duration) {
    for (name, session) in &later.sessions {
        let earlier = before.sessions.get(name).unwrap_or(session);
        say!("session {}", visible(name));
        lines(earlier, session, time).iter().for_each(|line| say!("    {}", visible(line)));
    }
}

#[allow(clippy::cast_precision_loss)] // for people
fn lines(before: &SessionReport, now: &SessionReport, time: Duration) -> Vec<String> {
    let state = &now.outbox;
    let (waiting, room) = (ByteSize(now.waiting_bytes as u64), ByteSize(state.max_bytes as u64));
    let age = state.oldest_s.map_or(String::new(), |age| {
        format!(", the oldest {} old", humantime::format_duration(Duration::from_secs(age)))
    });
    let mut lines = vec![format!("{}, {waiting} of {room}{age}", count(now.waiting, "message"))];
    // What has come is what has gone and what waits more.
    let gone = |report: &SessionReport| report.delivered + report.dropped + report.rejected + report.replaced;
    let out = gone(now).saturating_sub(gone(before)) as f64 / time.as_secs_f64();
    let grown = (now.waiting as f64 - before.waiting as f64) / time.as_secs_f64();
    let mut rates = format!("{:.1}/s in, {out:.1}/s out", (out + grown).max(0.0));
    let grown_bytes = (now.waiting_bytes as f64 - before.waiting_bytes as f64) / time.as_secs_f64();
    if grown_bytes > 0.0 {
        let left = state.max_bytes.saturating_sub(now.waiting_bytes) as f64 / grown_bytes;
        rates.push_str(&format!(", full in {:.1} h at this rate", left / 3600.0));
    }
    if let Some(hours) = state.hours_left {
        rates.push_str(&format!(", room for {hours:.1} h without the cloud at the rate of the last day"));
    }
    lines.push(rates);
    let disk = &state.disk;
    lines.push(match (&disk.problem, disk.kept) {
        (Some(problem), _) => format!("in memory only: {problem}"),
        (None, false) => "in memory only".into(),
        (None, true) => format!(
            "on the disk ({}), durable after {} ms (p50), {} ms (p99), {} ms (worst)",
            ByteSize(disk.disk_bytes),
            disk.lag_p50_ms,
            disk.lag_p99_ms,
            disk.lag_worst_ms
        ),
    });
    for (device, Drops { for_room, thinned, for_age, damaged }) in &state.dropped {
        let mut line = format!("dropped of {device}: {for_room} for want of room, {for_age} because they were too old");
        if *thinned > 0 {
            line.push_str(&format!(", {thinned} to thin its old telemetry for want of room"));
        }
        if *damaged > 0 {
            line.push_str(&format!(", {damaged} because the disk did not give them back"));
        }
        lines.push(line);
    }
    lines
}
