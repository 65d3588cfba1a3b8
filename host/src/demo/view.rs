//! What the demo shows: a live view on a terminal, plain lines elsewhere.
//!
//! Reads the status that everyone can read; touches nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, Wrap};
use serde_json::Value as Json;
use tokio::sync::mpsc;
use tokio::time::interval;

use crate::device::Phase;
use crate::logs::{LogLine, LogTap};
use crate::receipt::Receipt;
use crate::status::{DeviceReport, Status};
use crate::supervisor::Control;

const REFRESH: Duration = Duration::from_millis(500);
const PLAIN_REFRESH: Duration = Duration::from_secs(5);
const LOG_LINES: usize = 200;

/// Shows the gateway until someone presses q or Ctrl-C.
pub(super) async fn show(control: &Control, tap: &LogTap, hints: &[String], plain: bool) -> Result<()> {
    if plain { lines(control, hints).await } else { live(control, tap, hints).await }
}

/// One line a device, every few seconds.
async fn lines(control: &Control, hints: &[String]) -> Result<()> {
    println!("to try in a second terminal:");
    hints.iter().for_each(|hint| println!("    {hint}"));
    let mut refresh = interval(PLAIN_REFRESH);
    // The first tick comes at once, when nothing has been measured yet.
    refresh.tick().await;
    loop {
        refresh.tick().await;
        let Some(status) = control.status().await else { return Ok(()) };
        for session in status.sessions.values() {
            let state = if session.status.connected { "connected" } else { "not connected" };
            println!(
                "{} {state}, {} messages delivered, {} waiting",
                session.address, session.delivered, session.waiting
            );
        }
        for device in &status.devices {
            println!(
                "{:<16} {:<10} {:<26} {}  alerts: {}",
                device.id,
                device.phase.name(),
                format!("{} {}", device.driver, device.version),
                values(device, 4),
                alerts(device),
            );
        }
    }
}

/// The terminal view.
async fn live(control: &Control, tap: &LogTap, hints: &[String]) -> Result<()> {
    let mut terminal = ratatui::try_init().context("opening the terminal")?;
    let mut keys = keys();
    let (newest, mut news) = tap.listen();
    let mut log: VecDeque<LogLine> = newest.into();
    let mut refresh = interval(REFRESH);
    let mut rate = Rate::default();
    loop {
        tokio::select! {
            _ = refresh.tick() => {
                let Some(status) = control.status().await else { return Ok(()) };
                let per_second = rate.update(status.sessions.values().map(|session| session.delivered).sum());
                let receipts = control.receipts();
                let picture = Picture { status: &status, receipts: &receipts, log: &log, hints, per_second };
                terminal.draw(|frame| picture.draw(frame)).context("drawing")?;
            }
            line = news.recv() => {
                if let Ok(line) = line {
                    log.push_back(line);
                    if log.len() > LOG_LINES {
                        log.pop_front();
                    }
                }
            }
            _ = keys.recv() => return Ok(()),
        }
    }
}

/// Tells when someone wants to leave. Keys are read on a thread of their own,
/// because reading them blocks.
fn keys() -> mpsc::Receiver<()> {
    let (leave, keys) = mpsc::channel(1);
    std::thread::spawn(move || {
        loop {
            let Ok(Event::Key(key)) = event::read() else { continue };
            let control = key.modifiers.contains(KeyModifiers::CONTROL);
            if key.code == KeyCode::Char('q') || (key.code == KeyCode::Char('c') && control) {
                // The view may be gone already.
                let _ = leave.blocking_send(());
                return;
            }
        }
    });
    keys
}

/// Messages a second, over the last few seconds.
#[derive(Default)]
struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    #[allow(clippy::cast_precision_loss)] // for people
    fn update(&mut self, delivered: u64) -> f64 {
        self.0.push_back((Instant::now(), delivered));
        if self.0.len() > 10 {
            self.0.pop_front();
        }
        match (self.0.front(), self.0.back()) {
            (Some((begin, first)), Some((end, last))) if end > begin => {
                (last - first) as f64 / end.duration_since(*begin).as_secs_f64()
            }
            _ => 0.0,
        }
    }
}

struct Picture<'a> {
    status: &'a Status,
    receipts: &'a [Receipt],
    log: &'a VecDeque<LogLine>,
    hints: &'a [String],
    per_second: f64,
}

impl Picture<'_> {
    fn draw(&self, frame: &mut Frame<'_>) {
        let devices = u16::try_from(self.status.devices.len()).unwrap_or_default() * 2 + 3;
        let hints = u16::try_from(self.hints.len()).unwrap_or_default() + 2;
        let parts = [
            Constraint::Length(1),
            Constraint::Length(devices),
            Constraint::Length(8),
            Constraint::Min(4),
            Constraint::Length(hints),
        ];
        let [head, table, swaps, log, tail] = Layout::vertical(parts).areas(frame.area());
        frame.render_widget(self.head(), head);
        frame.render_widget(self.devices(), table);
        let receipts =
            self.receipts.iter().rev().take(3).map(|receipt| Line::from(format!("{}: {receipt}", receipt.device)));
        frame.render_widget(
            Paragraph::new(receipts.collect::<Vec<_>>())
                .wrap(Wrap { trim: false })
                .block(Block::bordered().title(" swaps ")),
            swaps,
        );
        let room = usize::from(log.height.saturating_sub(2));
        let lines: Vec<Line<'_>> = self.log.iter().skip(self.log.len().saturating_sub(room)).map(log_line).collect();
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" log ")), log);
        let hints: Vec<Line<'_>> = self.hints.iter().map(|hint| Line::from(hint.as_str())).collect();
        frame.render_widget(
            Paragraph::new(hints).block(Block::bordered().title(" try in a second terminal; q ends ")),
            tail,
        );
    }

    fn head(&self) -> Line<'_> {
        let sessions: Vec<String> = self
            .status
            .sessions
            .values()
            .map(|session| {
                let state = if session.status.connected { "connected" } else { "NOT CONNECTED" };
                format!("{} {state}, {} delivered, {} waiting", session.address, session.delivered, session.waiting)
            })
            .collect();
        let (up, rate, memory) = (self.status.uptime_s, self.per_second, self.status.memory >> 20);
        let text = format!(
            " sandgate {}  up {up} s  {rate:.1} messages/s  {memory} MiB  {}",
            self.status.version,
            sessions.join("  ")
        );
        Line::from(text).bold()
    }

    fn devices(&self) -> Table<'_> {
        let rows = self.status.devices.iter().map(|device| {
            let color = match device.phase {
                Phase::Running => Color::Green,
                Phase::Loading | Phase::Compiling => Color::Cyan,
                Phase::Restarting => Color::Yellow,
                Phase::Failed => Color::Red,
            };
            let watching = if device.watching { " (watched)" } else { "" };
            let trouble = device.problem.clone().unwrap_or_else(|| alerts(device));
            let alert_color =
                if device.alerts.as_ref().is_some_and(Vec::is_empty) { Color::Reset } else { Color::Yellow };
            Row::new([
                Cell::from(device.id.clone()).bold(),
                Cell::from(device.phase.name()).style(Style::new().fg(color)),
                Cell::from(format!("{} {}{watching}\n{} samples", device.driver, device.version, device.samples)),
                Cell::from(two_lines(&values(device, 8))),
                Cell::from(trouble).style(Style::new().fg(alert_color)),
            ])
            .height(2)
        });
        let widths = [
            Constraint::Length(16),
            Constraint::Length(10),
            Constraint::Length(36),
            Constraint::Min(40),
            Constraint::Length(24),
        ];
        let header = Row::new(["device", "state", "driver", "last values", "alerts"]).style(Style::new().dim());
        Table::new(rows, widths).header(header).block(Block::bordered().title(" devices "))
    }
}

fn log_line(line: &LogLine) -> Line<'_> {
    let text = line.display();
    match line.level.as_str() {
        "error" => Line::from(text).red(),
        "warn" => Line::from(text).yellow(),
        _ => Line::from(text),
    }
}

fn alerts(device: &DeviceReport) -> String {
    match device.alerts.as_deref() {
        None => "unknown".into(),
        Some([]) => "none".into(),
        Some(active) => active.join(", "),
    }
}

/// The first values, the status before all.
fn values(device: &DeviceReport, most: usize) -> String {
    let mut names: Vec<(&String, &Json)> =
        device.telemetry.iter().filter(|(_, value)| !value.is_null() && !value.is_array()).collect();
    let rank = |name: &str| match name {
        "status" => 0,
        name if name.contains("total") || name.contains("power") || name.contains("soc") => 1,
        _ => 2,
    };
    names.sort_by_key(|(name, _)| rank(name));
    let shown = names.iter().take(most).map(|(name, value)| match value {
        Json::String(text) => format!("{name}={text}"),
        Json::Number(number) if number.is_f64() => format!("{name}={:.1}", number.as_f64().unwrap_or_default()),
        other => format!("{name}={other}"),
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// Breaks a text in its middle, at a space.
fn two_lines(text: &str) -> String {
    let middle = text.char_indices().map(|(index, _)| index).find(|index| *index >= text.len() / 2).unwrap_or_default();
    match text.get(middle..).and_then(|rest| rest.find(' ')) {
        Some(offset) => {
            let (first, second) = text.split_at(middle + offset);
            format!("{first}\n{}", second.trim_start())
        }
        None => text.to_owned(),
    }
}

/// What stays on the terminal when the demo ends.
pub(super) fn print_summary(status: &Status, receipts: &[Receipt]) {
    for device in &status.devices {
        println!(
            "{:<16} {:<10} {} samples, {} rejected, {} crashes",
            device.id,
            device.phase.name(),
            device.samples,
            device.rejected,
            device.crashes
        );
    }
    let delivered: u64 = status.sessions.values().map(|session| session.delivered).sum();
    println!("{delivered} messages delivered, {} swaps in the receipts", receipts.len());
}
