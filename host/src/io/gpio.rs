//! Pins of Linux's GPIO character devices.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use gpiocdev::Request;
use gpiocdev::line::{self, EdgeDetection, Value};

use super::lock;
use crate::bus::{Pin as Device, Retry};
use crate::config::{Bias, DigitalInput, DigitalOutput};

/// Who has a pin, for other programs that look.
const CONSUMER: &str = "sandgate";
/// How long a thread that counts waits at once, and how long it rests when there is nothing to count.
const PATIENCE: Duration = Duration::from_millis(500);

/// A pin that is opened when it is needed.
struct Opened {
    request: Option<Arc<Request>>,
    retry: Retry,
}

impl Opened {
    fn new() -> Mutex<Opened> {
        Mutex::new(Opened { request: None, retry: Retry::default() })
    }

    fn get(&mut self, open: impl FnOnce() -> gpiocdev::Result<Request>) -> io::Result<Arc<Request>> {
        if let Some(request) = &self.request {
            return Ok(Arc::clone(request));
        }
        if self.retry.rests() {
            return Err(io::Error::other("it cannot be had; trying again soon"));
        }
        match open() {
            Ok(request) => {
                self.retry.succeeded();
                Ok(Arc::clone(self.request.insert(Arc::new(request))))
            }
            Err(error) => {
                self.retry.failed();
                Err(io::Error::other(error))
            }
        }
    }
}

fn is_on(value: Value) -> bool {
    value == Value::Active
}

/// A digital output.
pub struct Output {
    settings: DigitalOutput,
    opened: Mutex<Opened>,
}

impl Output {
    pub fn new(settings: &DigitalOutput) -> Output {
        Output { settings: settings.clone(), opened: Opened::new() }
    }

    fn request(&self) -> io::Result<Arc<Request>> {
        lock(&self.opened).get(|| {
            let mut builder = Request::builder();
            builder.on_chip(&self.settings.chip).with_consumer(CONSUMER).with_line(self.settings.line).as_is();
            if self.settings.active_low {
                builder.as_active_low();
            }
            let request = builder.request()?;
            // It becomes an output, and stays what it was.
            let mut config = request.config();
            config.as_output(request.lone_value()?);
            request.reconfigure(&config)?;
            Ok(request)
        })
    }
}

impl Device for Output {
    fn get(&self) -> io::Result<bool> {
        self.request()?.lone_value().map(is_on).map_err(io::Error::other)
    }

    fn set(&self, on: bool) -> io::Result<()> {
        let value = if on { Value::Active } else { Value::Inactive };
        self.request()?.set_lone_value(value).map_err(io::Error::other)
    }
}

/// A digital input, and the thread that counts how often it goes on.
pub struct Input(Arc<Counted>);

struct Counted {
    name: String,
    settings: DigitalInput,
    debounce: Mutex<Option<Duration>>,
    opened: Mutex<Opened>,
    count: AtomicU64,
}

impl Input {
    pub fn new(name: &str, settings: &DigitalInput) -> Input {
        let counted = Arc::new(Counted {
            name: name.to_owned(),
            settings: settings.clone(),
            debounce: Mutex::new(settings.debounce.map(|span| span.0)),
            opened: Opened::new(),
            count: AtomicU64::new(0),
        });
        let counts = Arc::downgrade(&counted);
        let thread = std::thread::Builder::new().name("pulses".into()).spawn(move || count(&counts));
        if let Err(error) = thread {
            tracing::error!(bus = name, "its pulses are not counted: {error}");
        }
        Input(counted)
    }
}

impl Counted {
    fn request(&self) -> io::Result<Arc<Request>> {
        let debounce = *lock(&self.debounce);
        lock(&self.opened).get(|| {
            let mut builder = Request::builder();
            let DigitalInput { chip, line, active_low, bias, .. } = &self.settings;
            builder.on_chip(chip).with_consumer(CONSUMER).with_line(*line).as_input();
            builder.with_edge_detection(EdgeDetection::RisingEdge);
            if *active_low {
                builder.as_active_low();
            }
            if let Some(bias) = bias {
                builder.with_bias(line::Bias::from(*bias));
            }
            if let Some(debounce) = debounce {
                builder.with_debounce_period(debounce);
            }
            builder.request()
        })
    }
}

/// Counts until nobody has the input any more.
fn count(counted: &Weak<Counted>) {
    let mut is_told = false;
    while let Some(counted) = counted.upgrade() {
        let next = counted.request().and_then(|request| {
            if request.wait_edge_event(PATIENCE).map_err(io::Error::other)? {
                request.read_edge_event().map_err(io::Error::other)?;
                counted.count.fetch_add(1, Relaxed);
            }
            Ok(())
        });
        if let Err(error) = next {
            if !std::mem::replace(&mut is_told, true) {
                tracing::warn!(bus = counted.name, "its pulses are not counted: {error}");
            }
            lock(&counted.opened).request = None;
            std::thread::sleep(PATIENCE);
        } else if std::mem::take(&mut is_told) {
            tracing::info!(bus = counted.name, "its pulses are counted again");
        }
    }
}

impl Device for Input {
    fn get(&self) -> io::Result<bool> {
        self.0.request()?.lone_value().map(is_on).map_err(io::Error::other)
    }

    fn count(&self) -> io::Result<u64> {
        self.0.request()?;
        Ok(self.0.count.load(Relaxed))
    }

    fn set_count(&self, count: u64) -> io::Result<()> {
        self.0.count.store(count, Relaxed);
        Ok(())
    }

    fn set_debounce(&self, time: Duration) -> io::Result<()> {
        *lock(&self.0.debounce) = Some(time);
        let request = self.0.request()?;
        let mut config = request.config();
        config.with_debounce_period(time);
        request.reconfigure(&config).map_err(io::Error::other)
    }
}

impl From<Bias> for line::Bias {
    fn from(bias: Bias) -> Self {
        match bias {
            Bias::PullUp => line::Bias::PullUp,
            Bias::PullDown => line::Bias::PullDown,
            Bias::Disabled => line::Bias::Disabled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_that_is_not_there_is_an_error_and_no_end() {
        let settings = DigitalOutput { chip: "/dev/sandgate-has-no-such-chip".into(), line: 3, active_low: false };
        let output = Output::new(&settings);
        assert!(output.set(true).is_err());
        let rests = output.get().unwrap_err();
        assert!(rests.to_string().contains("trying again soon"), "{rests}");
    }
}
