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
use tokio::sync::mpsc;
use tokio::time::interval;

use crate::draw::{ended, lay_out, log_line, seen, seen_text, values};
use crate::say::say;
use sandgate::device::Phase;
use sandgate::logs::{LogLine, LogTap};
use sandgate::message::Time;
use sandgate::receipt::Receipt;
use sandgate::status::Status;
use sandgate::supervisor::Control;
use sandgate::text::count;

const REFRESH: Duration = Duration::from_millis(500);
const PLAIN_REFRESH: Duration = Duration::from_secs(5);
const LOG_LINES: usize = 200;

/// Shows the gateway until someone presses q or Ctrl-C.
pub(super) async fn show(control: &Control, tap: &LogTap, hints: &[String], plain: bool, since: Time) -> Result<()> {
    if plain { lines(control, hints).await } else { live(control, tap, hints, since).await }
}

/// The swaps of this run: the folder may hold those of an earlier one.
pub(super) fn swaps_since(control: &Control, since: Time) -> Vec<Receipt> {
    control.receipts().into_iter().filter(|receipt| receipt.time >= since).collect()
}

/// One line a device, every few seconds.
async fn lines(control: &Control, hints: &[String]) -> Result<()> {
    say!("to try in a second terminal:");
    hints.iter().for_each(|hint| say!("    {hint}"));
    let mut refresh = interval(PLAIN_REFRESH);
    // The first tick comes at once, when nothing has been measured yet.
    refresh.tick().await;
    loop {
        refresh.tick().await;
        let Some(status) = control.status().await else { return Ok(()) };
        for session in status.sessions.values() {
            let state = if session.status.connected { "connected" } else { "not connected" };
            say!("{} {state}, {} messages delivered, {} waiting", session.address, session.delivered, session.waiting);
        }
        for device in &status.devices {
            say!(
                "{:<16} {:<10} {:<26} {}  alerts: {}",
                device.id,
                device.phase.name(),
                format!("{} {}", device.driver, device.version),
                values(device).into_iter().take(4).collect::<Vec<_>>().join(" "),
                device.alerts_text(),
            );
        }
    }
}

/// The terminal view.
async fn live(control: &Control, tap: &LogTap, hints: &[String], since: Time) -> Result<()> {
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
                let receipts = swaps_since(control, since);
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

/// What is drawn at a time.
struct Picture<'a> {
    status: &'a Status,
    receipts: &'a [Receipt],
    log: &'a VecDeque<LogLine>,
    hints: &'a [String],
    per_second: f64,
}

/// How high the parts are. A low terminal has one line for a device, and loses
/// hints before anything else.
struct Heights {
    /// Of one device.
    row: u16,
    table: u16,
    swaps: u16,
    hints: u16,
}

impl Heights {
    /// Lines around a part.
    const FRAME: u16 = 2;
    /// Of the log, with its frame.
    const LEAST_LOG: u16 = 5;

    fn of(height: u16, devices: usize, hints: usize) -> Heights {
        let number = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
        let table = |row: u16| number(devices).saturating_mul(row).saturating_add(Self::FRAME + 1);
        let is_high = height >= table(2).saturating_add(number(hints) + 16);
        let (row, swaps) = if is_high { (2, 6) } else { (1, 4) };
        let table = table(row).min(height.saturating_sub(1 + swaps + Self::LEAST_LOG));
        let rest = height.saturating_sub(1 + table + swaps + Self::LEAST_LOG);
        let hints = if rest > Self::FRAME { rest.min(number(hints) + Self::FRAME) } else { 0 };
        Heights { row, table, swaps, hints }
    }
}

/// How wide the columns of the table are.
struct Widths {
    device: u16,
    state: u16,
    /// Of the driver; 0 where there is no room for it.
    driver: u16,
    values: u16,
    alerts: u16,
}

impl Widths {
    fn of(width: u16) -> Widths {
        let (device, state) = (16, 10);
        let (driver, alerts) = if width >= 120 { (30, 30) } else { (0, 24) };
        let columns = if driver > 0 { 5 } else { 4 };
        let values = width.saturating_sub(2 + device + state + driver + alerts + columns - 1);
        Widths { device, state, driver, values, alerts }
    }
}

impl Picture<'_> {
    fn draw(&self, frame: &mut Frame<'_>) {
        let area = frame.area();
        let heights = Heights::of(area.height, self.status.devices.len(), self.hints.len());
        let parts = [
            Constraint::Length(1),
            Constraint::Length(heights.table),
            Constraint::Length(heights.swaps),
            Constraint::Min(Heights::LEAST_LOG),
            Constraint::Length(heights.hints),
        ];
        let [head, table, swaps, log, tail] = Layout::vertical(parts).areas(area);
        frame.render_widget(self.head(area.width), head);
        frame.render_widget(self.devices(&Widths::of(area.width), heights.row), table);
        let receipts = self.receipts.iter().rev().take(3);
        let receipts: Vec<Line<'_>> = receipts.map(|receipt| seen(&format!("{}: {receipt}", receipt.device))).collect();
        frame.render_widget(
            Paragraph::new(receipts).wrap(Wrap { trim: false }).block(Block::bordered().title(" swaps ")),
            swaps,
        );
        let room = usize::from(log.height.saturating_sub(Heights::FRAME));
        let lines: Vec<Line<'_>> = self.log.iter().skip(self.log.len().saturating_sub(room)).map(log_line).collect();
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" log ")), log);
        let hints: Vec<Line<'_>> = self.hints.iter().map(|hint| seen(hint)).collect();
        frame.render_widget(
            Paragraph::new(hints).block(Block::bordered().title(" try in a second terminal; q ends ")),
            tail,
        );
    }

    fn head(&self, width: u16) -> Line<'_> {
        let (up, rate, memory) = (self.status.uptime_s, self.per_second, self.status.memory >> 20);
        let own = [
            format!("sandgate {}", self.status.version),
            format!("up {up} s"),
            format!("{rate:.1} messages/s"),
            format!("{memory} MiB"),
        ];
        let sessions = self.status.sessions.values().map(|session| {
            let state = if session.status.connected { "connected" } else { "NOT CONNECTED" };
            format!("{} {state}, {} delivered, {} waiting", session.address, session.delivered, session.waiting)
        });
        let parts: Vec<String> = own.into_iter().chain(sessions).collect();
        seen(&format!(" {}", lay_out(&parts, usize::from(width.saturating_sub(2)), 1, "  "))).bold()
    }

    fn devices(&self, widths: &Widths, height: u16) -> Table<'_> {
        let rows = self.status.devices.iter().map(|device| {
            let color = match device.phase {
                Phase::Running => Color::Green,
                Phase::Loading | Phase::Compiling => Color::Cyan,
                Phase::Restarting => Color::Yellow,
                Phase::Failed => Color::Red,
            };
            let watching = if device.watching { " (watched)" } else { "" };
            let driver = format!("{} {}{watching}\n{} samples", device.driver, device.version, device.samples);
            let values = lay_out(&values(device), usize::from(widths.values), usize::from(height), " ");
            let trouble = device.problem.clone().unwrap_or_else(|| device.alerts_text());
            let alert_color = if trouble == "none" { Color::Reset } else { Color::Yellow };
            let cells = [
                (widths.device, Cell::from(seen(&device.id)).bold()),
                (widths.state, Cell::from(device.phase.name()).style(Style::new().fg(color))),
                (widths.driver, Cell::from(seen_text(&driver))),
                (widths.values, Cell::from(seen_text(&values))),
                (widths.alerts, Cell::from(seen(&ended(&trouble, widths.alerts))).style(Style::new().fg(alert_color))),
            ];
            let cells = cells.into_iter().filter(|(width, _)| *width > 0).map(|(_, cell)| cell);
            Row::new(cells).height(height)
        });
        let columns = [
            (widths.device, "device"),
            (widths.state, "state"),
            (widths.driver, "driver"),
            (widths.values, "last values"),
            (widths.alerts, "alerts"),
        ];
        let columns = columns.into_iter().filter(|(width, _)| *width > 0);
        let (lengths, titles): (Vec<_>, Vec<_>) =
            columns.map(|(width, title)| (Constraint::Length(width), title)).unzip();
        let header = Row::new(titles).style(Style::new().dim());
        Table::new(rows, lengths).header(header).block(Block::bordered().title(" devices "))
    }
}

/// What stays on the terminal when the demo ends.
pub(super) fn print_summary(status: &Status, receipts: &[Receipt]) {
    for device in &status.devices {
        say!(
            "{:<16} {:<10} {} samples, {} rejected, {} crashes",
            device.id,
            device.phase.name(),
            device.samples,
            device.rejected,
            device.crashes
        );
    }
    let delivered: u64 = status.sessions.values().map(|session| session.delivered).sum();
    say!("{delivered} messages delivered, {}", count(receipts.len(), "swap"));
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use sandgate::status::DeviceReport;

    use super::*;

    fn device(id: &str) -> DeviceReport {
        let report = serde_json::json!({"id": id, "phase": "running", "driver": "power-meter-pm2100",
            "version": "1.0.0", "digest": "", "watching": false, "problem": null, "samples": 12, "rejected": 0,
            "limited": 0, "log_lines_dropped": 0, "errors": 0, "crashes": 0, "commands": 0, "last_sample": null,
            "alerts": [], "properties": {}, "telemetry": {"status": "ok", "power_total": 12345.6, "l1_volt": 231.4,
            "l2_volt": 229.9, "l3_volt": 230.3, "frequency": 50.0, "evil": "\u{1b}[2J"}});
        serde_json::from_value(report).unwrap()
    }

    fn screen(width: u16, height: u16) -> Vec<String> {
        let status = Status {
            version: "0.1.0".into(),
            uptime_s: 7,
            memory: 64 << 20,
            sessions: [].into(),
            devices: ["house_meter", "heat_pump_meter", "inverter", "lamp"].map(device).into(),
        };
        let (log, hints) = (VecDeque::new(), vec!["hint".to_owned(); 8]);
        let picture = Picture { status: &status, receipts: &[], log: &log, hints: &hints, per_second: 1.0 };
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| picture.draw(frame)).unwrap();
        let cells = terminal.backend().buffer().content();
        cells.chunks(usize::from(width)).map(|line| line.iter().map(|cell| cell.symbol()).collect()).collect()
    }

    #[test]
    fn every_size_shows_all_devices_and_only_whole_numbers() {
        let whole = ["status=ok", "power_total=12345.6", "l1_volt=231.4", "l2_volt=229.9", "l3_volt=230.3"];
        for (width, height) in [(80, 24), (100, 30), (120, 40), (200, 60)] {
            let screen = screen(width, height);
            for name in ["house_meter", "heat_pump_meter", "inverter", "lamp"] {
                let line = screen.iter().find(|line| line.contains(name)).unwrap();
                assert!(line.contains("running") && line.contains("status=ok"), "{width}x{height}: {line}");
            }
            for word in screen.iter().flat_map(|line| line.split([' ', '│'])).filter(|word| word.contains('=')) {
                let is_other = word.starts_with("frequency=50.0") || word.starts_with("evil=\\u001b[2J");
                assert!(whole.contains(&word) || is_other, "{width}x{height}: {word:?}");
            }
            assert!(!screen.concat().contains('\u{1b}') && screen.iter().any(|line| line.contains("hint")));
        }
        // However small it is, it can be drawn.
        (1..40).for_each(|size| drop(screen(size * 2, size)));
    }
}
