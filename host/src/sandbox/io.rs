//! The import `io`: granted inputs and outputs of the machine.

use std::time::Duration;

use wasmtime::component::Resource;

use super::contract::sandgate::driver::io::{Counter, IoError};
use super::net::timeout;
use super::state::State;
use crate::io::{Pin, PinKind};
use crate::manifest::RequestKind;

/// An output, by its name.
pub struct Output(Pin);
/// An input.
pub struct Input(Pin);
/// An analog input.
pub struct Analog(Pin);

const LONGEST_DEBOUNCE: f64 = 1000.0;

type Outcome<T> = wasmtime::Result<Result<T, IoError>>;

impl State {
    /// A granted pin of a kind.
    fn pin(&mut self, name: &str, kind: PinKind) -> Result<Pin, IoError> {
        match self.lines.io.get(name) {
            Some(pin) if pin.kind == kind => Ok(pin.clone()),
            Some(pin) => {
                let text = format!("{name:?} is {}, and the driver wants {}", pin.kind.noun(), kind.noun());
                self.complain(&text, &text);
                Err(IoError::NotGranted(text))
            }
            None => Err(IoError::NotGranted(self.no_line(RequestKind::Io, name))),
        }
    }

    pub(super) fn open_output(&mut self, name: &str) -> Outcome<Resource<Output>> {
        match self.pin(name, PinKind::Output) {
            Ok(pin) => Ok(Ok(self.table.push(Output(pin))?)),
            Err(error) => Ok(Err(error)),
        }
    }

    pub(super) fn open_input(&mut self, name: &str) -> Outcome<Resource<Input>> {
        match self.pin(name, PinKind::Input) {
            Ok(pin) => Ok(Ok(self.table.push(Input(pin))?)),
            Err(error) => Ok(Err(error)),
        }
    }

    pub(super) fn open_analog(&mut self, name: &str) -> Outcome<Resource<Analog>> {
        match self.pin(name, PinKind::Analog) {
            Ok(pin) => Ok(Ok(self.table.push(Analog(pin))?)),
            Err(error) => Ok(Err(error)),
        }
    }

    pub(super) async fn output_state(&mut self, output: Resource<Output>) -> Outcome<bool> {
        let pin = self.table.get(&output)?.0.clone();
        Ok(pin.get().await.map_err(IoError::Unavailable))
    }

    pub(super) async fn switch(&mut self, output: Resource<Output>, on: bool) -> Outcome<()> {
        let pin = self.table.get(&output)?.0.clone();
        Ok(pin.set(on).await.map_err(IoError::Unavailable))
    }

    pub(super) async fn pulse(&mut self, output: Resource<Output>, milliseconds: f64) -> Outcome<()> {
        let pin = self.table.get(&output)?.0.clone();
        Ok(match timeout(milliseconds) {
            Ok(duration) => pin.pulse(duration).await.map_err(IoError::Unavailable),
            Err(text) => Err(IoError::InvalidArgument(text.replace("timeout", "duration"))),
        })
    }

    pub(super) async fn input_state(&mut self, input: Resource<Input>) -> Outcome<bool> {
        let pin = self.table.get(&input)?.0.clone();
        Ok(pin.get().await.map_err(IoError::Unavailable))
    }

    pub(super) async fn pulses(&mut self, input: Resource<Input>) -> Outcome<Counter> {
        let pin = self.table.get(&input)?.0.clone();
        let counter = |(count, since): (u64, Duration)| Counter { count, since: since.as_secs_f64() * 1000.0 };
        Ok(pin.count().await.map(counter).map_err(IoError::Unavailable))
    }

    pub(super) async fn set_pulses(&mut self, input: Resource<Input>, count: u64) -> Outcome<()> {
        let pin = self.table.get(&input)?.0.clone();
        Ok(pin.set_count(count).await.map_err(IoError::Unavailable))
    }

    pub(super) async fn set_debounce(&mut self, input: Resource<Input>, milliseconds: f64) -> Outcome<()> {
        let pin = self.table.get(&input)?.0.clone();
        if !(0.0..=LONGEST_DEBOUNCE).contains(&milliseconds) {
            let text = format!("time: expected 0 to 1000 ms, found {milliseconds} ms");
            return Ok(Err(IoError::InvalidArgument(text)));
        }
        let time = Duration::from_secs_f64(milliseconds / 1000.0);
        Ok(pin.set_debounce(time).await.map_err(IoError::Unavailable))
    }

    pub(super) async fn analog(&mut self, analog: Resource<Analog>) -> Outcome<f64> {
        let pin = self.table.get(&analog)?.0.clone();
        Ok(pin.read().await.map_err(IoError::Unavailable))
    }
}
