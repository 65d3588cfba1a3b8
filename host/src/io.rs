//! Digital and analog inputs and outputs that the host owns: pulses of outputs
//! that end by themselves, pulses of inputs that are counted.

mod gpio;
mod iio;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::bus::Pin as Device;
use crate::config::{AnalogInput, DigitalInput, DigitalOutput};

/// What a pin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PinKind {
    /// Switched on and off.
    Output,
    /// On or off, and counted.
    Input,
    /// A number.
    Analog,
}

impl PinKind {
    /// As people know it.
    pub fn noun(self) -> &'static str {
        match self {
            PinKind::Output => "an output",
            PinKind::Input => "an input",
            PinKind::Analog => "an analog input",
        }
    }
}

/// A pin, for all devices that may use it. Clones are the same.
#[derive(Clone)]
pub struct Pin {
    /// What it is.
    pub kind: PinKind,
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    device: Box<dyn Device>,
    /// Where it may take long to ask: one at a time does.
    turn: Option<Arc<tokio::sync::Mutex<()>>>,
    /// What was done with it; a pulse ends only if nothing else was.
    deeds: AtomicU64,
    /// What it was before the pulse that is under way.
    before: Mutex<Option<bool>>,
    /// When its count was set.
    since: Mutex<Instant>,
}

impl Pin {
    /// A digital output of this machine.
    pub fn output(name: &str, settings: &DigitalOutput) -> Pin {
        Pin::new(name, PinKind::Output, Box::new(gpio::Output::new(settings)), true)
    }

    /// A digital input of this machine, which counts from now on.
    pub fn input(name: &str, settings: &DigitalInput) -> Pin {
        Pin::new(name, PinKind::Input, Box::new(gpio::Input::new(name, settings)), true)
    }

    /// An analog input of this machine.
    pub fn analog(name: &str, settings: &AnalogInput) -> Pin {
        Pin::new(name, PinKind::Analog, Box::new(iio::Channel::new(settings)), true)
    }

    /// One with something simulated behind it.
    pub fn simulated(name: &str, kind: PinKind, device: Box<dyn Device>) -> Pin {
        Pin::new(name, kind, device, false)
    }

    fn new(name: &str, kind: PinKind, device: Box<dyn Device>, is_machine: bool) -> Pin {
        let inner = Inner {
            name: name.to_owned(),
            device,
            turn: is_machine.then(Arc::default),
            deeds: AtomicU64::new(0),
            before: Mutex::default(),
            since: Mutex::new(Instant::now()),
        };
        Pin { kind, inner: Arc::new(inner) }
    }

    /// Asks the device, where that may take long on a thread that may wait. A pin
    /// that hangs has one thread, however often it is asked.
    async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&dyn Device) -> io::Result<T> + Send + 'static,
    ) -> Result<T, String> {
        let inner = Arc::clone(&self.inner);
        let asked = match &self.inner.turn {
            Some(turn) => {
                let turn = Arc::clone(turn).lock_owned().await;
                let work = move || {
                    let _turn = turn;
                    ask(inner.device.as_ref())
                };
                tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
            }
            None => Ok(ask(inner.device.as_ref())),
        };
        asked.and_then(|answer| answer).map_err(|error| format!("{}: {error}", self.inner.name))
    }

    /// Whether it is on.
    pub async fn get(&self) -> Result<bool, String> {
        self.ask(|device| device.get()).await
    }

    /// Switches it, and ends a pulse.
    pub async fn set(&self, on: bool) -> Result<(), String> {
        self.inner.deeds.fetch_add(1, Relaxed);
        *lock(&self.inner.before) = None;
        self.ask(move |device| device.set(on)).await
    }

    /// Switches it over for a while.
    pub async fn pulse(&self, duration: Duration) -> Result<(), String> {
        let known = *lock(&self.inner.before);
        let before = match known {
            Some(before) => before,
            None => self.get().await?,
        };
        let deed = self.inner.deeds.fetch_add(1, Relaxed) + 1;
        *lock(&self.inner.before) = Some(before);
        let end = End { inner: Arc::clone(&self.inner), deed, before };
        self.ask(move |device| device.set(!before)).await?;
        tokio::spawn(async move {
            let _end = end;
            sleep(duration).await;
        });
        Ok(())
    }

    /// How often it went on, and since when that is counted.
    pub async fn count(&self) -> Result<(u64, Duration), String> {
        let since = lock(&self.inner.since).elapsed();
        Ok((self.ask(|device| device.count()).await?, since))
    }

    /// Lets pulses be counted from here.
    pub async fn set_count(&self, count: u64) -> Result<(), String> {
        self.ask(move |device| device.set_count(count)).await?;
        *lock(&self.inner.since) = Instant::now();
        Ok(())
    }

    /// How long a change has to last.
    pub async fn set_debounce(&self, time: Duration) -> Result<(), String> {
        self.ask(move |device| device.set_debounce(time)).await
    }

    /// What an analog input shows.
    pub async fn read(&self) -> Result<f64, String> {
        self.ask(|device| device.read()).await
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends a pulse when its time is over, or when the gateway stops before.
struct End {
    inner: Arc<Inner>,
    deed: u64,
    before: bool,
}

impl Drop for End {
    fn drop(&mut self) {
        if self.inner.deeds.load(Relaxed) != self.deed {
            return;
        }
        *lock(&self.inner.before) = None;
        if let Err(error) = self.inner.device.set(self.before) {
            tracing::error!(bus = self.inner.name, "the pulse cannot be ended: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[derive(Clone, Default)]
    struct Relay(Arc<AtomicBool>);

    impl Device for Relay {
        fn get(&self) -> io::Result<bool> {
            Ok(self.0.load(Relaxed))
        }

        fn set(&self, on: bool) -> io::Result<()> {
            self.0.store(on, Relaxed);
            Ok(())
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn relay() -> (Pin, Relay) {
        let relay = Relay::default();
        (Pin::simulated("pump", PinKind::Output, Box::new(relay.clone())), relay)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pulse_ends_by_itself_unless_something_else_is_done() {
        let (pin, relay) = relay();
        pin.pulse(SECOND).await.unwrap();
        assert!(relay.get().unwrap());
        sleep(2 * SECOND).await;
        assert!(!relay.get().unwrap());
        // A second one within it makes it longer.
        pin.pulse(SECOND).await.unwrap();
        sleep(SECOND / 2).await;
        pin.pulse(SECOND).await.unwrap();
        sleep(SECOND * 3 / 4).await;
        assert!(relay.get().unwrap());
        sleep(SECOND).await;
        assert!(!relay.get().unwrap());
        // Switching by hand ends it.
        pin.pulse(SECOND).await.unwrap();
        pin.set(true).await.unwrap();
        sleep(2 * SECOND).await;
        assert!(relay.get().unwrap());
        pin.pulse(SECOND).await.unwrap();
        assert!(!relay.get().unwrap());
        sleep(2 * SECOND).await;
        assert!(relay.get().unwrap());
    }

    /// Counts who is asking.
    struct Slow(Arc<AtomicU64>, Arc<AtomicU64>);

    impl Device for Slow {
        fn get(&self) -> io::Result<bool> {
            let asking = self.0.fetch_add(1, Relaxed) + 1;
            self.1.fetch_max(asking, Relaxed);
            std::thread::sleep(Duration::from_millis(5));
            self.0.fetch_sub(1, Relaxed);
            Ok(true)
        }
    }

    #[tokio::test]
    async fn a_pin_that_takes_long_is_asked_by_one_at_a_time() {
        let most = Arc::new(AtomicU64::new(0));
        let pin = Pin::new("slow", PinKind::Input, Box::new(Slow(Arc::default(), Arc::clone(&most))), true);
        let asked = futures::future::join_all((0..10).map(|_| pin.get())).await;
        assert!(asked.iter().all(|on| *on == Ok(true)));
        assert_eq!(most.load(Relaxed), 1);
    }

    #[test]
    fn a_gateway_that_stops_ends_its_pulses() {
        let (pin, relay) = relay();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async { pin.pulse(3600 * SECOND).await.unwrap() });
        assert!(relay.get().unwrap());
        drop(runtime);
        assert!(!relay.get().unwrap());
    }
}
