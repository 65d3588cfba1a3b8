//! What a device may consume: memory, CPU, time, messages, log lines.
//!
//! Defaults with their reasons stand here and nowhere else.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::Instant;
use wasmtime::ResourceLimiter;

use super::shares::Share;
use crate::config::{self, Rate};
use crate::manifest::RequestedLimits;

/// One tick of the engine's epoch: a guest yields to others at least this often.
pub const TICK: Duration = Duration::from_millis(5);

/// What a manifest can ask for without the operator's word: enough for the
/// largest toolchain, too little to harm the others.
const MOST_MEMORY: usize = 128 << 20;
const MOST_CPU: Duration = Duration::from_secs(5);
const MOST_CALL: Duration = Duration::from_secs(60);
const MOST_RATE: Rate = Rate { per_second: 100.0, burst: 200.0 };

fn at_most(wish: Rate) -> Rate {
    Rate { per_second: wish.per_second.min(MOST_RATE.per_second), burst: wish.burst.min(MOST_RATE.burst) }
}

/// The limits of one device, resolved from the operator's, the manifest's and
/// the defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Bytes of linear memory.
    pub memory: usize,
    /// CPU time of one call.
    pub cpu: Duration,
    /// Wall-clock time of one call.
    pub call: Duration,
    /// Samples and property sets.
    pub telemetry: Rate,
    /// Log lines.
    pub logs: Rate,
    /// Bytes of stored keys and values.
    pub storage: usize,
}

impl Default for Limits {
    /// For a small driver: a Rust driver takes 1.1 MiB, a QuickJS one 1.4 MiB,
    /// a Python one 13 MiB; a call takes microseconds, or waits for a slow
    /// device for some seconds.
    fn default() -> Self {
        Limits {
            memory: 32 << 20,
            cpu: Duration::from_millis(500),
            call: Duration::from_secs(10),
            telemetry: Rate { per_second: 20.0, burst: 50.0 },
            logs: Rate { per_second: 20.0, burst: 50.0 },
            storage: 64 << 10,
        }
    }
}

impl Limits {
    /// What the operator says wins; what the manifest asks for is capped.
    pub fn resolve(operator: &config::Limits, manifest: &RequestedLimits) -> Limits {
        let default = Limits::default();
        Limits {
            memory: operator.memory.map_or_else(
                || manifest.memory.map_or(default.memory, |wish| wish.bytes().min(MOST_MEMORY)),
                config::Size::bytes,
            ),
            cpu: operator
                .cpu
                .map_or_else(|| manifest.cpu.map_or(default.cpu, |wish| wish.0.min(MOST_CPU)), |cpu| cpu.0),
            call: operator
                .call
                .map_or_else(|| manifest.call.map_or(default.call, |wish| wish.0.min(MOST_CALL)), |call| call.0),
            telemetry: operator.telemetry.unwrap_or_else(|| manifest.telemetry.map_or(default.telemetry, at_most)),
            logs: operator.logs.unwrap_or_else(|| manifest.logs.map_or(default.logs, at_most)),
            storage: operator.storage.map_or(default.storage, config::Size::bytes),
        }
    }
}

/// Lets events pass at a rate, with a burst after a quiet time.
#[derive(Debug)]
pub struct RateLimiter {
    rate: Rate,
    tokens: f64,
    last: Instant,
}

impl RateLimiter {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> Self {
        RateLimiter { rate, tokens: rate.burst.max(1.0), last: now }
    }

    /// Whether one more event may pass.
    pub fn allow(&mut self, now: Instant) -> bool {
        self.take(now).is_ok()
    }

    /// Lets one more event pass, or says how long it has to wait.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let gained = now.saturating_duration_since(self.last).as_secs_f64() * self.rate.per_second;
        self.last = now;
        self.tokens = (self.tokens + gained).min(self.rate.burst.max(1.0));
        if self.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.tokens) / self.rate.per_second));
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

/// Counts the linear memory of one instance, and its tables.
#[derive(Debug)]
pub struct MemoryLimit {
    limit: usize,
    used: usize,
    /// Core instances that may be made.
    instances: usize,
    /// Whether the guest was refused memory; explains the trap that follows.
    pub refused: bool,
}

impl MemoryLimit {
    /// Allows this many bytes in all linear memories together, and this many
    /// core instances.
    pub fn new(limit: usize, instances: usize) -> Self {
        MemoryLimit { limit, used: 0, instances, refused: false }
    }

    /// Bytes that it has now.
    pub fn used(&self) -> usize {
        self.used
    }
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> wasmtime::Result<bool> {
        let used = self.used.saturating_sub(current).saturating_add(desired);
        if used > self.limit {
            self.refused = true;
            return Ok(false);
        }
        self.used = used;
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, most: Option<usize>) -> wasmtime::Result<bool> {
        let size = |elements: usize| elements.saturating_mul(size_of::<usize>());
        self.memory_growing(size(current), size(desired), most)
    }

    fn instances(&self) -> usize {
        self.instances
    }

    fn memories(&self) -> usize {
        10
    }

    fn tables(&self) -> usize {
        100
    }
}

/// The processor time of one call: how long its future was polled. What it
/// waits for, by whichever import, is not in it.
#[derive(Debug)]
pub struct CpuBudget {
    limit: Duration,
    meter: Arc<Meter>,
}

/// Measures how long a future is polled. Its numbers are read from inside of
/// a poll, by the epoch's callback, so they are shared; one task writes them.
#[derive(Debug)]
pub struct Meter {
    /// Of the processor's own time, which no test pauses.
    base: std::time::Instant,
    /// When the running poll began, in nanoseconds since `base`.
    began: AtomicU64,
    /// All polls before, in nanoseconds.
    used: AtomicU64,
}

impl CpuBudget {
    /// A budget for each call.
    pub fn new(limit: Duration) -> Self {
        let meter = Meter { base: std::time::Instant::now(), began: AtomicU64::new(0), used: AtomicU64::new(0) };
        CpuBudget { limit, meter: Arc::new(meter) }
    }

    /// A call begins; its future is to be run through the meter.
    pub fn begin(&mut self) -> Arc<Meter> {
        self.meter.used.store(0, Relaxed);
        Arc::clone(&self.meter)
    }

    /// Whether the guest, which runs now, may go on.
    pub fn is_left(&self) -> bool {
        !self.left().is_zero()
    }

    /// How much of the budget is left to the call that runs.
    pub fn left(&self) -> Duration {
        let running = self.meter.now().saturating_sub(self.meter.began.load(Relaxed));
        self.limit.saturating_sub(Duration::from_nanos(self.meter.used.load(Relaxed) + running))
    }
}

impl Meter {
    /// Polls a future when it is the device's turn, and measures how long that
    /// takes. The future stays where it is: a second copy would double the size
    /// of every device.
    pub(super) fn poll<F: Future>(
        &self,
        share: &mut Share,
        future: Pin<&mut F>,
        context: &mut Context<'_>,
    ) -> Poll<F::Output> {
        let _turn = ready!(share.poll_turn(context));
        let began = self.now();
        self.began.store(began, Relaxed);
        let polled = future.poll(context);
        let took = self.now().saturating_sub(began);
        self.used.fetch_add(took, Relaxed);
        share.used(Duration::from_nanos(took));
        polled
    }

    /// What the call has used, in nanoseconds.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_lets_its_burst_pass_and_then_its_pace() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(Rate { per_second: 2.0, burst: 3.0 }, start);
        let passed = |limiter: &mut RateLimiter, now| (0..10).filter(|_| limiter.allow(now)).count();
        assert_eq!(passed(&mut limiter, start), 3);
        assert_eq!(passed(&mut limiter, start + Duration::from_secs(1)), 2);
        assert_eq!(passed(&mut limiter, start + Duration::from_secs(100)), 3);
    }

    #[tokio::test]
    async fn a_call_that_lets_others_run_again_and_again_uses_its_budget_all_the_same() {
        let mut budget = CpuBudget::new(Duration::from_millis(20));
        let meter = budget.begin();
        let compute = async {
            for polls in 0_u32.. {
                if !budget.is_left() {
                    return polls;
                }
                std::thread::sleep(Duration::from_millis(1));
                tokio::task::yield_now().await;
            }
            0
        };
        let mut compute = std::pin::pin!(compute);
        let mut share = super::super::shares::Shares::new().share(std::time::Instant::now());
        // Each poll takes at least a millisecond.
        let metered = std::future::poll_fn(|context| meter.poll(&mut share, compute.as_mut(), context));
        assert!(metered.await <= 20);
    }

    #[test]
    fn memory_counts_over_all_memories_of_an_instance() {
        let mut limit = MemoryLimit::new(100, 10);
        assert!(limit.memory_growing(0, 60, None).unwrap());
        assert!(!limit.memory_growing(0, 60, None).unwrap());
        assert!(limit.refused);
        assert!(limit.memory_growing(60, 80, None).unwrap());
        assert!(limit.table_growing(0, 2, None).unwrap());
        assert!(!limit.table_growing(2, 100_000, None).unwrap());
    }
}
