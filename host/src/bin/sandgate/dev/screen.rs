//! The view on a terminal: values, devices, what happened, the log; menus and a
//! line to type steps in.

use anyhow::{Context, Result};
use ratatui::DefaultTerminal;
use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};
use sandgate::device::Phase;
use sandgate::manifest::Manifest;
use sandgate::scenario::{Choice, Playground};
use sandgate::status::Status;
use sandgate::text;
use serde_json::Value as Json;

use super::told::Told;
use crate::draw::{log_line, seen};

/// What is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    Nothing,
    /// A step.
    Play(String),
    /// That the scenarios run.
    Test,
    End,
}

/// What keys mean at the moment.
enum Mode {
    Watching,
    /// Something is chosen from.
    Choosing(Vec<Choice>, usize),
    /// A step is typed.
    Typing(String),
}

/// See the module documentation.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    mode: Mode,
}

/// What is drawn at a time.
pub(super) struct Picture<'a> {
    pub manifest: &'a Manifest,
    pub playground: &'a Playground,
    pub status: Option<&'a Status>,
    pub told: &'a Told,
}

impl Screen {
    pub(super) fn open() -> Result<Screen> {
        Ok(Screen { terminal: ratatui::try_init().context("opening the terminal")?, mode: Mode::Watching })
    }

    pub(super) fn draw(&mut self, picture: &Picture<'_>) -> Result<()> {
        let mode = &self.mode;
        self.terminal.draw(|frame| draw(frame, picture, mode)).context("drawing")?;
        Ok(())
    }

    /// Takes a key.
    pub(super) fn press(&mut self, key: KeyCode, playground: &Playground) -> Wish {
        self.mode.press(key, playground)
    }
}

impl Mode {
    fn press(&mut self, key: KeyCode, playground: &Playground) -> Wish {
        let (next, wish) = match (std::mem::replace(self, Mode::Watching), key) {
            (Mode::Watching, KeyCode::Char('q')) => (Mode::Watching, Wish::End),
            (Mode::Watching, KeyCode::Char('t')) => (Mode::Watching, Wish::Test),
            (Mode::Watching, KeyCode::Char('c')) => (Mode::choosing(playground.commands()), Wish::Nothing),
            (Mode::Watching, KeyCode::Char('b')) => (Mode::choosing(playground.faults()), Wish::Nothing),
            (Mode::Watching, KeyCode::Char('r')) => {
                let names: Vec<Json> = playground.devices().into_iter().map(|device| device.name.into()).collect();
                match names.is_empty() {
                    true => (Mode::Watching, Wish::Nothing),
                    false => (Mode::Watching, Wish::Play(format!("repair: {}", Json::from(names)))),
                }
            }
            (Mode::Watching, KeyCode::Char(':')) => (Mode::Typing(String::new()), Wish::Nothing),
            (Mode::Choosing(..) | Mode::Typing(_), KeyCode::Esc) => (Mode::Watching, Wish::Nothing),
            (Mode::Choosing(choices, at), KeyCode::Down) => {
                let at = (at + 1).min(choices.len().saturating_sub(1));
                (Mode::Choosing(choices, at), Wish::Nothing)
            }
            (Mode::Choosing(choices, at), KeyCode::Up) => {
                (Mode::Choosing(choices, at.saturating_sub(1)), Wish::Nothing)
            }
            (Mode::Choosing(choices, at), KeyCode::Enter) => taken(choices.get(at)),
            (Mode::Choosing(choices, _), KeyCode::Char(digit @ '1'..='9')) => {
                taken(digit.to_digit(10).and_then(|digit| choices.get(usize::try_from(digit).ok()? - 1)))
            }
            (Mode::Typing(text), KeyCode::Enter) if text.trim().is_empty() => (Mode::Watching, Wish::Nothing),
            (Mode::Typing(text), KeyCode::Enter) => (Mode::Watching, Wish::Play(text)),
            (Mode::Typing(mut text), KeyCode::Char(c)) => {
                text.push(c);
                (Mode::Typing(text), Wish::Nothing)
            }
            (Mode::Typing(mut text), KeyCode::Backspace) => {
                text.pop();
                (Mode::Typing(text), Wish::Nothing)
            }
            (mode, _) => (mode, Wish::Nothing),
        };
        *self = next;
        wish
    }

    fn choosing(choices: Vec<Choice>) -> Mode {
        if choices.is_empty() { Mode::Watching } else { Mode::Choosing(choices, 0) }
    }
}

/// A choice that is complete is done; one that is open is filled in first.
fn taken(choice: Option<&Choice>) -> (Mode, Wish) {
    match choice {
        Some(choice) if choice.is_open => (Mode::Typing(choice.step.clone()), Wish::Nothing),
        Some(choice) => (Mode::Watching, Wish::Play(choice.step.clone())),
        None => (Mode::Watching, Wish::Nothing),
    }
}

fn draw(frame: &mut Frame<'_>, picture: &Picture<'_>, mode: &Mode) {
    let values = picture.values();
    let devices = picture.devices();
    let high = u16::try_from(values.len().max(devices.len()) + 2).unwrap_or(u16::MAX);
    let parts = [
        Constraint::Length(1),
        Constraint::Length(high.min(frame.area().height / 2)),
        Constraint::Min(5),
        Constraint::Length(frame.area().height / 5),
        Constraint::Length(1),
    ];
    let [head, top, middle, log, foot] = Layout::vertical(parts).areas(frame.area());
    let [left, right] = Layout::horizontal([Constraint::Percentage(45), Constraint::Percentage(55)]).areas(top);
    frame.render_widget(picture.head(), head);
    frame.render_widget(Paragraph::new(values).block(Block::bordered().title(" values ")), left);
    frame.render_widget(Paragraph::new(devices).block(Block::bordered().title(" simulated devices ")), right);
    let lines = picture.told.lines.iter().map(|line| told_line(line)).collect::<Vec<_>>();
    frame.render_widget(last(&lines, middle, " what happened "), middle);
    let lines = picture.told.log.iter().map(log_line).collect::<Vec<_>>();
    frame.render_widget(last(&lines, log, " log "), log);
    let keys = match mode {
        Mode::Watching => Line::from(" c command  b break  r repair  t test  : step  q quit").dim(),
        Mode::Choosing(choices, at) => {
            choose(frame, middle, choices, *at);
            Line::from(" up, down, Enter or a digit chooses; Esc goes back").dim()
        }
        Mode::Typing(text) => seen(&format!(" : {text}_   (Enter plays it, Esc goes back)")).bold(),
    };
    frame.render_widget(keys, foot);
}

/// As many of the last lines as there is room for.
fn last<'a>(lines: &[Line<'a>], area: Rect, title: &'a str) -> Paragraph<'a> {
    let room = usize::from(area.height.saturating_sub(2));
    let shown = lines.iter().skip(lines.len().saturating_sub(room)).cloned().collect::<Vec<_>>();
    Paragraph::new(shown).block(Block::bordered().title(title))
}

fn choose(frame: &mut Frame<'_>, area: Rect, choices: &[Choice], at: usize) {
    let room = usize::from(area.height.saturating_sub(2)).max(1);
    let first = at.saturating_sub(room - 1);
    let lines = choices.iter().enumerate().skip(first).take(room).map(|(number, choice)| {
        let digit = if number < 9 { (number + 1).to_string() } else { " ".into() };
        let line = seen(&format!(" {digit} {}", choice.label));
        if number == at { line.reversed() } else { line }
    });
    frame.render_widget(Clear, area);
    let block = Block::bordered().title(" choose ");
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).wrap(Wrap { trim: false }).block(block), area);
}

fn told_line(text: &str) -> Line<'static> {
    let line = seen(text);
    if text.starts_with("FAILED") || text.starts_with("NOT BUILT") || text.starts_with("error") {
        return line.red();
    }
    if text.starts_with('>') { line.dim() } else { line }
}

impl Picture<'_> {
    fn head(&self) -> Line<'static> {
        let device = self.status.and_then(|status| status.devices.first());
        let phase = device.map_or(Phase::Loading, |device| device.phase);
        let color = if phase == Phase::Running { Color::Green } else { Color::Yellow };
        let label =
            device.map_or_else(|| self.manifest.label(), |device| format!("{} {}", device.driver, device.version));
        let cloud = self.status.and_then(|status| status.sessions.values().next()).map(|session| {
            let state = if session.status.connected { "connected" } else { "NOT CONNECTED" };
            format!("cloud {state}, {} delivered", session.delivered)
        });
        let tested = match &self.told.tested {
            None => "scenarios are running".to_owned(),
            Some(tested) if tested.problem.is_some() => "scenarios cannot be run".to_owned(),
            Some(tested) => match tested.failed() {
                0 => format!("{} passed", text::count(tested.scenarios.len(), "scenario")),
                failed => format!("{} FAILED", text::count(failed, "scenario")),
            },
        };
        let building = if self.told.is_building { "   building" } else { "" };
        let head = format!(" {label}  {}   {tested}   {}{building}", phase.name(), cloud.unwrap_or_default());
        seen(&head).style(Style::new().fg(color)).bold()
    }

    /// A line for each value, then what is wrong.
    fn values(&self) -> Vec<Line<'static>> {
        let Some(device) = self.status.and_then(|status| status.devices.first()) else { return Vec::new() };
        let declared = &self.manifest.blueprint.telemetry;
        let shown = device.telemetry.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| {
            let unit = declared.get(name).and_then(|declared| declared.unit.clone()).unwrap_or_default();
            seen(&format!("{name:<24} {} {unit}", value_text(value)))
        });
        let properties =
            device.properties.iter().map(|(name, value)| seen(&format!("{name:<24} {}", value_text(value))).dim());
        let alerts = match &device.problem {
            Some(problem) => seen(problem).red(),
            None => {
                let alerts = device.alerts_text();
                let line = seen(&format!("alerts: {alerts}"));
                if alerts == "none" { line } else { line.yellow() }
            }
        };
        [alerts].into_iter().chain(shown).chain(properties).collect()
    }

    /// A line for each device, then what they were asked lately.
    fn devices(&self) -> Vec<Line<'static>> {
        let devices = self.playground.devices();
        let lines = devices.iter().map(|device| {
            let state = if device.faults.is_empty() { "is fine".to_owned() } else { device.faults.join(", ") };
            let line = seen(&format!("{} ({}) {state}", device.name, device.kind)).bold();
            if device.faults.is_empty() { line } else { line.yellow() }
        });
        let requests = self.playground.requests();
        let asked = requests.iter().rev().take(8).rev().map(|line| seen(line).dim());
        lines.chain(asked).collect()
    }
}

fn value_text(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Number(number) if number.is_f64() => format!("{:.3}", number.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}
