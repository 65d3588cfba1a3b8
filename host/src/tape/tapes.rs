//! What a device needs for its tapes, and where those of dead drivers are kept.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::recorder::Room;
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
    /// What somebody has asked for: so many bytes until a time, also of new lives.
    asked: Arc<Mutex<Option<(usize, Instant)>>>,
    /// How many lives have begun.
    lives: Arc<AtomicU64>,
}

impl Tapes {
    /// Those of a device: room that it shares, and the folder for its post-mortems.
    pub fn new(room: Room, is_on: bool, folder: Option<PathBuf>) -> Tapes {
        Tapes { room, is_on, folder, last: Arc::default(), asked: Arc::default(), lives: Arc::default() }
    }

    /// What a new instance has at its boundary.
    pub fn deck(&self) -> Deck {
        self.lives.fetch_add(1, Relaxed);
        if let Some((bytes, until)) = self.asked() {
            let mut recorder = self.room.asked_recorder();
            recorder.extend(bytes, until);
            return Deck::Recording(recorder);
        }
        let recorder = self.is_on.then(|| self.room.recorder()).flatten();
        recorder.map_or(Deck::Off, Deck::Recording)
    }

    /// Keeps so many bytes of this life and of new ones until a time.
    pub fn ask(&self, bytes: usize, until: Instant) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some((bytes, until));
    }

    fn asked(&self) -> Option<(usize, Instant)> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).filter(|(_, until)| Instant::now() < *until)
    }

    /// Lets a deck record what was asked for, or no longer when that is over.
    pub fn adapt(&self, deck: &mut Deck) -> bool {
        let Some((bytes, until)) = self.asked() else {
            if !self.is_on && deck.recorder().is_some_and(|recorder| recorder.is_over()) {
                *deck = Deck::Off;
            }
            return false;
        };
        let begins = matches!(deck, Deck::Off);
        if begins {
            let mut recorder = self.room.asked_recorder();
            recorder.begins_late();
            *deck = Deck::Recording(recorder);
        }
        if let Some(recorder) = deck.recorder() {
            recorder.extend(bytes, until);
        }
        begins
    }

    /// How many lives have begun.
    pub fn lives(&self) -> u64 {
        self.lives.load(Relaxed)
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
