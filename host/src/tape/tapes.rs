//! What a device needs for its tapes, and where those of dead drivers are kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::recorder::{Recorder, Room};
use super::{Deck, Tape};
use crate::clock::{Time, now};
use crate::files;

/// The folder of the state folder with a folder for each device.
pub const POST_MORTEMS: &str = "post-mortems";
/// Post-mortems of a device; older ones go.
const KEPT: usize = 3;
/// How their names end.
const END: &str = ".tape";
/// A driver that crashes again and again leaves no more than one in this time.
const PAUSE: Duration = Duration::from_secs(60);

/// Of one device.
#[derive(Debug, Clone)]
pub struct Tapes {
    room: Room,
    /// Whether each life is recorded.
    is_on: bool,
    /// Where post-mortems go.
    folder: Option<PathBuf>,
    /// When the last one was written, in ms since the Unix epoch.
    last: Arc<AtomicU64>,
}

impl Tapes {
    /// Those of a device: room that it shares, and the folder for its post-mortems.
    pub fn new(room: Room, is_on: bool, folder: Option<PathBuf>) -> Tapes {
        Tapes { room, is_on, folder, last: Arc::default() }
    }

    /// What a new instance has at its boundary.
    pub fn deck(&self) -> Deck {
        let recorder = self.is_on.then(|| self.room.recorder()).flatten();
        recorder.map_or(Deck::Off, Deck::Recording)
    }

    /// A recorder for a time, from the middle of a life on.
    pub fn late_recorder(&self) -> Box<Recorder> {
        self.room.late_recorder()
    }

    /// Writes a post-mortem, beside what runs. A crash loop leaves one a minute.
    pub fn keep(&self, tape: Tape) {
        let Some(folder) = self.folder.clone() else { return };
        let (time, last) = (now(), self.last.load(Relaxed));
        let pause = u64::try_from(PAUSE.as_millis()).unwrap_or(u64::MAX);
        if last != 0 && time.abs_diff(last) < pause {
            return;
        }
        self.last.store(time, Relaxed);
        tokio::task::spawn_blocking(move || {
            let device = tape.header.device.clone();
            match write(&folder, time, &tape) {
                Ok(()) => {
                    tracing::info!(device, "what it did before is kept: sandgate tape {device} --post-mortem");
                }
                Err(error) => tracing::warn!(device, "its post-mortem cannot be kept: {error:#}"),
            }
        });
    }
}

fn write(folder: &Path, time: Time, tape: &Tape) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    files::replace(&folder.join(format!("{time:015}{END}")), &tape.to_bytes())?;
    files::remove_oldest(folder, KEPT, |name| name.ends_with(END));
    Ok(())
}

/// The post-mortems in a folder, oldest first.
pub fn post_mortems(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_tape = |path: &PathBuf| path.to_string_lossy().ends_with(END);
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_tape).collect();
    paths.sort();
    paths
}
