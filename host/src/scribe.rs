//! A thread that writes to the disk in order, so that nobody who has something
//! to note waits for a slow one.

use std::sync::mpsc;

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// See the module documentation. Clones share the thread, which ends with the
/// last of them.
#[derive(Clone)]
pub struct Scribe(mpsc::Sender<Job>);

impl Scribe {
    /// Starts the thread.
    pub fn start() -> std::io::Result<Scribe> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        std::thread::Builder::new().name("scribe".into()).spawn(move || inbox.iter().for_each(|job| job()))?;
        Ok(Scribe(jobs))
    }

    /// Does something after all that was handed over before. Whoever calls
    /// bounds how much that is.
    pub fn write(&self, job: impl FnOnce() + Send + 'static) {
        // The thread ends after its last sender only.
        let _ = self.0.send(Box::new(job));
    }

    /// Waits until all that was handed over is done.
    pub async fn flush(&self) {
        let (done, all_done) = oneshot::channel();
        // Whoever waited may be gone.
        self.write(move || done.send(()).unwrap_or_default());
        let _ = all_done.await;
    }
}
