//! The thread that writes the journal: whatever has come since it looked last
//! goes to the disk together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use super::STALLED;
use super::memory::{Line, Memory};
use crate::ledger::{Ledger, Safety};

/// Lines that are written together.
const TOGETHER: usize = 1000;
/// How long a command that came waits for others, above all for its own start.
const COMPANY: Duration = Duration::from_millis(2);

/// What the journal and its thread share.
pub(super) struct Shared {
    memory: Mutex<Memory>,
    /// Since when the thread writes what it writes now.
    writing: Mutex<Option<Instant>>,
}

/// Something for the thread.
pub(super) struct Job {
    pub line: Option<Line>,
    pub safety: Safety,
    /// Whether nobody waits for it but the broker.
    pub can_wait: bool,
    /// What is done when it is written as safely as asked, or cannot be.
    pub done: Done,
}

pub(super) type Done = Box<dyn FnOnce(Result<(), &str>) + Send>;

impl Shared {
    pub(super) fn new(memory: Memory) -> Arc<Shared> {
        Arc::new(Shared { memory: Mutex::new(memory), writing: Mutex::new(None) })
    }

    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn writing(&self) -> MutexGuard<'_, Option<Instant>> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.writing().is_some_and(|since| since.elapsed() > STALLED)
    }

    /// Writes what comes, until nobody is left who could send something.
    pub(super) fn write(&self, jobs: &mpsc::Receiver<Job>, mut ledger: Ledger) {
        let mut is_told = false;
        while let Ok(first) = jobs.recv() {
            let jobs = together(first, jobs);
            *self.writing() = Some(Instant::now());
            let problem = self.write_together(jobs, &mut ledger).err();
            *self.writing() = None;
            if let (Some(problem), false) = (&problem, is_told) {
                tracing::error!("writing the command journal: {problem}; commands are refused until it can be written");
            }
            is_told = problem.is_some();
        }
    }

    fn write_together(&self, jobs: Vec<Job>, ledger: &mut Ledger) -> std::io::Result<()> {
        let lines: Vec<Line> = jobs.iter().filter_map(|job| job.line.clone()).collect();
        let all = || self.memory().lines().into_iter();
        let written = ledger.record(&lines, Safety::Accepted, all);
        let problem = written.as_ref().err().map(ToString::to_string);
        let (durable, accepted): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.safety == Safety::Durable);
        for job in accepted {
            (job.done)(problem.as_deref().map_or(Ok(()), Err));
        }
        if durable.is_empty() {
            return written;
        }
        let synced = written.and_then(|()| ledger.record(&[] as &[Line], Safety::Durable, all));
        let problem = synced.as_ref().err().map(ToString::to_string);
        for job in durable {
            (job.done)(problem.as_deref().map_or(Ok(()), Err));
        }
        synced
    }
}

/// What is written at once: all that is there, and where that is only what came,
/// what comes within a moment.
fn together(first: Job, inbox: &mpsc::Receiver<Job>) -> Vec<Job> {
    let (mut jobs, end) = (vec![first], Instant::now() + COMPANY);
    loop {
        jobs.extend(inbox.try_iter().take(TOGETHER));
        if jobs.len() >= TOGETHER || jobs.iter().any(|job| !job.can_wait) {
            return jobs;
        }
        match inbox.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(job) => jobs.push(job),
            Err(_) => return jobs,
        }
    }
}
