//! A tape call by call.

use std::time::Duration;

use super::event::Kind;
use super::file::Tape;

/// One call of an export and all that it asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call<'a> {
    /// When it began, since the begin of the life.
    pub at: Duration,
    /// Which export.
    pub number: u8,
    /// Its arguments.
    pub arguments: &'a [u8],
    /// Its result; none when the tape ends in it.
    pub result: Option<&'a [u8]>,
    /// What it asked, in order.
    pub asked: Vec<Exchange<'a>>,
}

/// One import, and what the host answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange<'a> {
    /// When, as far as waiting tells.
    pub at: Duration,
    /// How long the answer took.
    pub took: Duration,
    /// Which import.
    pub number: u8,
    /// Its arguments.
    pub arguments: &'a [u8],
    /// The answer; none when the call ended before it came.
    pub answer: Option<&'a [u8]>,
}

impl Tape {
    /// All calls, oldest first.
    pub fn calls(&self) -> Vec<Call<'_>> {
        let mut calls: Vec<Call<'_>> = Vec::new();
        let mut now = Duration::ZERO;
        for moment in self.moments() {
            let event = moment.event;
            if event.kind == Kind::Call {
                now = moment.at;
                let (number, arguments) = (event.number, event.bytes);
                calls.push(Call { at: now, number, arguments, result: None, asked: Vec::new() });
                continue;
            }
            let Some(call) = calls.last_mut() else { continue };
            match event.kind {
                Kind::Call => {}
                Kind::Return => call.result = Some(event.bytes),
                Kind::Import => {
                    let (number, arguments) = (event.number, event.bytes);
                    call.asked.push(Exchange { at: now, took: Duration::ZERO, number, arguments, answer: None });
                }
                Kind::Answer => {
                    now = now.saturating_add(event.time);
                    if let Some(exchange) = call.asked.last_mut() {
                        (exchange.took, exchange.answer) = (event.time, Some(event.bytes));
                    }
                }
            }
        }
        calls
    }
}
