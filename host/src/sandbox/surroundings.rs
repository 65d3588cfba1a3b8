//! What is simulated around a driver: devices, the clock, chance.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use wasmtime_wasi::{Deterministic, HostMonotonicClock, HostWallClock, WasiCtxBuilder};

use crate::bus::Simulation;
use crate::clock;

/// Random bytes come again after so many.
const CYCLE: usize = 64 << 10;

/// See the module documentation. By default nothing is.
#[derive(Clone, Default)]
pub struct Surroundings {
    /// Where connections lead.
    pub field: Option<Arc<dyn Simulation>>,
    /// Where chance begins; with it the clocks follow the runtime's time.
    pub seed: Option<u64>,
}

impl Surroundings {
    /// Gives a driver the clocks and the chance that are simulated.
    pub(super) fn lay_around(&self, wasi: &mut WasiCtxBuilder) {
        let Some(seed) = self.seed else { return };
        wasi.wall_clock(Clock(Instant::now())).monotonic_clock(Clock(Instant::now()));
        let mut chance = fastrand::Rng::with_seed(seed);
        let mut cycle = || {
            let mut bytes = vec![0; CYCLE];
            chance.fill(&mut bytes);
            Deterministic::new(bytes)
        };
        wasi.secure_random(cycle()).insecure_random(cycle()).insecure_random_seed(seed.into());
    }
}

/// The time of the runtime.
struct Clock(Instant);

impl HostWallClock for Clock {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        Duration::from_millis(clock::now())
    }
}

impl HostMonotonicClock for Clock {
    fn resolution(&self) -> u64 {
        1_000_000
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
