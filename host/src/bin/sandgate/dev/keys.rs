//! What people type: keys on a terminal, lines elsewhere.

use std::io::BufRead;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

/// Something was typed.
pub(super) enum Input {
    /// A key.
    Key(KeyCode),
    /// A step of a scenario.
    Step(String),
    /// That it is enough.
    End,
}

/// See the module documentation.
pub(super) struct Keys(mpsc::Receiver<Input>);

impl Keys {
    /// Keys, as they are pressed. Reading them blocks a thread of its own.
    pub(super) fn pressed() -> Keys {
        let (sender, keys) = mpsc::channel(64);
        std::thread::spawn(move || {
            while let Ok(event) = event::read() {
                let input = match event {
                    Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) => {
                        match code == KeyCode::Char('c') && modifiers.contains(KeyModifiers::CONTROL) {
                            true => Input::End,
                            false => Input::Key(code),
                        }
                    }
                    _ => continue,
                };
                if sender.blocking_send(input).is_err() {
                    return;
                }
            }
        });
        Keys(keys)
    }

    /// Lines, each a step; their end means nothing.
    pub(super) fn lines() -> Keys {
        let (sender, keys) = mpsc::channel(64);
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                let input = match line.trim() {
                    "" => continue,
                    "quit" => Input::End,
                    step => Input::Step(step.to_owned()),
                };
                if sender.blocking_send(input).is_err() {
                    return;
                }
            }
        });
        Keys(keys)
    }

    /// The next one; none when there are no more.
    pub(super) async fn next(&mut self) -> Option<Input> {
        self.0.recv().await
    }
}
