//! `sandgate devices`: a gateway's status as a table.

use crate::say::say;
use sandgate::session::SessionStatus;
use sandgate::status::{DeviceReport, SessionReport, Status};
use sandgate::text::visible;

/// The columns and how wide they are; longer texts push the rest to the right.
const COLUMNS: [(&str, usize); 7] =
    [("DEVICE", 20), ("STATE", 11), ("DRIVER", 30), ("SAMPLES", 9), ("REJECTED", 8), ("CRASHES", 8), ("GOOD DATA", 10)];

/// Prints sessions and devices.
pub(super) fn print(status: &Status) {
    for (name, session) in &status.sessions {
        say!("session {}", visible(&describe(name, session)));
    }
    say!("{}  ALERTS", row(COLUMNS.map(|(title, _)| title.to_owned())));
    for device in &status.devices {
        let DeviceReport { id, driver, version, samples, rejected, crashes, .. } = device;
        let age = device.age_text();
        let cells = [
            id.clone(),
            device.phase.name().to_owned(),
            format!("{driver} {version}"),
            samples.to_string(),
            rejected.to_string(),
            crashes.to_string(),
            if device.good_sample_age_s.is_some() { format!("{age} ago") } else { age },
        ];
        say!("{}  {}", row(cells), device.alerts_text());
        if let Some(problem) = &device.problem {
            say!("    {}", visible(problem));
        }
    }
}

fn describe(name: &str, session: &SessionReport) -> String {
    let state = match &session.status {
        SessionStatus { connected: true, .. } => "connected".to_owned(),
        SessionStatus { problem: None, .. } => "connecting".to_owned(),
        SessionStatus { problem: Some(problem), .. } => format!("not connected: {problem}"),
    };
    let lost = [(session.dropped, "dropped for room or age"), (session.rejected, "rejected by the cloud")];
    let lost: String =
        lost.iter().filter(|(number, _)| *number > 0).map(|(number, words)| format!(", {number} {words}")).collect();
    let SessionReport { address, delivered, waiting, .. } = session;
    format!("{name}: {address} {state}, {delivered} delivered, {waiting} waiting{lost}")
}

/// Words to the left, numbers to the right.
fn row(cells: [String; COLUMNS.len()]) -> String {
    let cells = cells.iter().zip(COLUMNS).enumerate().map(|(place, (cell, (_, width)))| {
        let cell = visible(cell);
        if place < 3 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
    });
    cells.collect::<Vec<_>>().join(" ")
}
