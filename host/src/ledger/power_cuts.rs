//! A ledger on a simulated disk whose power is cut, and whose process is killed,
//! at any moment: what was accepted is there after a kill, what is durable also
//! after a power cut. The journal of commands, drivers' storage, receipts and
//! what the supervisor remembers are ledgers.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::rc::Rc;

use fastrand::Rng;
use serde_json::json;

use super::*;

/// A power cut tears writes between two of these.
const SECTOR: usize = 512;

/// One file on a disk in memory; clones share it.
#[derive(Clone, Default)]
struct Simulated(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    files: Vec<FileState>,
    /// The file that stands there, and the one that the folder knows for sure.
    current: Option<usize>,
    known: Option<usize>,
    /// Calls that go well before one fails.
    fails_after: Option<u32>,
}

#[derive(Clone, Default)]
struct FileState {
    /// What is in the page cache, and what is on the disk.
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

impl Simulated {
    fn call(&self) -> io::Result<()> {
        match &mut self.0.borrow_mut().fails_after {
            Some(0) => Err(io::Error::from_raw_os_error(5)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The process dies: nothing that was written is lost.
    fn kill(&self) {
        self.0.borrow_mut().fails_after = None;
    }

    /// The power goes: each sector that was not synced is there or not, and so is a new name.
    fn cut(&self, random: &mut Rng) {
        let mut state = self.0.borrow_mut();
        let is_new_there = random.bool();
        state.current = if is_new_there { state.current } else { state.known };
        state.known = state.current;
        state.fails_after = None;
        let Some(file) = state.current.and_then(|current| state.files.get_mut(current)) else { return };
        let mut bytes = file.synced.clone();
        // How long it is, is known before what is in it.
        let length = random.usize(bytes.len()..=file.bytes.len().max(bytes.len()));
        bytes.resize(length, 0);
        for begin in (0..length).step_by(SECTOR) {
            let end = (begin + SECTOR).min(length).min(file.bytes.len());
            if random.bool() && begin < end {
                bytes[begin..end].copy_from_slice(&file.bytes[begin..end]);
            }
        }
        *file = FileState { synced: bytes.clone(), bytes };
    }
}

impl Place for Simulated {
    type File = usize;

    fn read(&self) -> io::Result<Option<(Box<dyn BufRead>, u64)>> {
        let state = self.0.borrow();
        let Some(current) = state.current else { return Ok(None) };
        let bytes = state.files[current].bytes.clone();
        let size = bytes.len() as u64;
        Ok(Some((Box::new(io::Cursor::new(bytes)), size)))
    }

    fn open(&self) -> io::Result<usize> {
        self.call()?;
        self.0.borrow().current.ok_or(io::ErrorKind::NotFound.into())
    }

    fn is_at(&self, file: &usize) -> bool {
        self.0.borrow().current == Some(*file)
    }

    fn append(&self, file: &usize, bytes: &[u8]) -> io::Result<()> {
        let failed = self.call();
        // A write that fails may have written a part.
        let bytes = if failed.is_err() { &bytes[..bytes.len() / 2] } else { bytes };
        self.0.borrow_mut().files[*file].bytes.extend_from_slice(bytes);
        failed
    }

    fn sync(&self, file: &usize) -> io::Result<()> {
        self.call()?;
        let file = &mut self.0.borrow_mut().files[*file];
        file.synced = file.bytes.clone();
        Ok(())
    }

    fn sync_name(&self) -> io::Result<()> {
        self.call()?;
        let mut state = self.0.borrow_mut();
        state.known = state.current;
        Ok(())
    }

    fn replace(&self, write: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.call()?;
        write(&mut bytes)?;
        // Of the part, before it has the name.
        self.call()?;
        let number = {
            let mut state = self.0.borrow_mut();
            state.files.push(FileState { synced: bytes.clone(), bytes });
            let number = state.files.len() - 1;
            state.current = Some(number);
            number
        };
        // Of the folder.
        self.call()?;
        self.0.borrow_mut().known = Some(number);
        Ok(())
    }

    fn keep_aside(&self) -> io::Result<PathBuf> {
        self.call()?;
        Ok("aside".into())
    }

    fn name(&self) -> String {
        "simulated".into()
    }
}

/// What a key may say after a death: the last one is what it says now.
type Values = Vec<Option<u64>>;

/// An owner of a ledger, which keeps values by key.
struct Owner {
    ledger: Ledger<Simulated>,
    values: BTreeMap<u64, u64>,
    /// What each key may say after a kill, and after a power cut.
    after_kill: BTreeMap<u64, Values>,
    after_cut: BTreeMap<u64, Values>,
}

fn entry(key: u64, value: Option<u64>) -> Json {
    json!({"key": key, "value": value, "text": "x".repeat(key as usize * 40)})
}

fn open(place: Simulated) -> (Ledger<Simulated>, BTreeMap<u64, u64>) {
    let mut values = BTreeMap::new();
    let ledger = Ledger::open_in(place, "test", |line| {
        let (Some(key), Some(value)) = (line.get("key").and_then(Json::as_u64), line.get("value")) else {
            return false;
        };
        match value.as_u64() {
            Some(value) => drop(values.insert(key, value)),
            None => drop(values.remove(&key)),
        }
        true
    });
    (ledger, values)
}

impl Owner {
    /// What has been found is the truth from now on; after a kill it may still be lost by a power cut.
    fn new(place: &Simulated, after_cut: BTreeMap<u64, Values>, random: &mut Rng) -> Owner {
        let (ledger, values) = open(place.clone());
        let mut owner = Owner { ledger, values, after_kill: BTreeMap::new(), after_cut };
        // Some write anew what was damaged at once, others with their next entry.
        if !owner.ledger.is_whole() && random.bool() {
            owner.rewrite();
        }
        owner
    }

    fn values_of(map: &mut BTreeMap<u64, Values>, key: u64, now: Option<u64>) -> &mut Values {
        map.entry(key).or_insert_with(|| vec![now])
    }

    fn rewrite(&mut self) {
        let all: Vec<Json> = self.values.iter().map(|(key, value)| entry(*key, Some(*value))).collect();
        if self.ledger.rewrite(all.into_iter()).is_ok() {
            self.all_durable();
        }
    }

    fn all_durable(&mut self) {
        self.after_kill.clear();
        self.after_cut.clear();
    }

    fn set(&mut self, key: u64, value: Option<u64>, safety: Safety) {
        let before = self.values.get(&key).copied();
        let mut new = self.values.clone();
        match value {
            Some(value) => drop(new.insert(key, value)),
            None => drop(new.remove(&key)),
        }
        let was_whole = self.ledger.is_whole();
        let all: Vec<Json> = new.iter().map(|(key, value)| entry(*key, Some(*value))).collect();
        let result = self.ledger.record(&[entry(key, value)], safety, || all.into_iter());
        Owner::values_of(&mut self.after_cut, key, before).push(value);
        match result {
            Ok(()) => {
                self.values = new;
                self.after_kill.remove(&key);
                // An error before may have left something in the file that is gone only now.
                if safety == Safety::Durable || !was_whole {
                    self.all_durable();
                }
            }
            // It may be there or not.
            Err(_) => Owner::values_of(&mut self.after_kill, key, before).push(value),
        }
    }

    fn step(&mut self, place: &Simulated, random: &mut Rng) {
        match random.u32(..100) {
            0..80 => {
                let safety = if random.bool() { Safety::Durable } else { Safety::Accepted };
                let value = (random.u32(..5) > 0).then(|| random.u64(..1_000_000));
                self.set(random.u64(..8), value, safety);
            }
            80..90 => self.ledger.close(),
            90..95 => self.rewrite(),
            _ => place.0.borrow_mut().fails_after = random.bool().then(|| random.u32(..10)),
        }
    }
}

/// One life after another on one disk, each with a death at a random moment.
fn lives(seed: u64, deaths: u32) {
    let mut random = Rng::with_seed(seed);
    let place = Simulated::default();
    let mut owner = Owner::new(&place, BTreeMap::new(), &mut random);
    for death in 0..deaths {
        for _ in 0..random.u32(..40) {
            owner.step(&place, &mut random);
        }
        let is_cut = random.bool();
        if is_cut {
            place.cut(&mut random)
        } else {
            place.kill()
        }
        let Owner { values, after_kill, mut after_cut, .. } = owner;
        let (_, found) = open(place.clone());
        for key in 0..8 {
            let (now, found) = (values.get(&key).copied(), found.get(&key).copied());
            let may_be = if is_cut { &after_cut } else { &after_kill };
            let is_right = found == now || may_be.get(&key).is_some_and(|values| values.contains(&found));
            let what = if is_cut { "power cut" } else { "kill" };
            assert!(is_right, "seed {seed}, death {death}, {what}: key {key} is {found:?}, was {now:?}");
            if !is_cut && found != now {
                Owner::values_of(&mut after_cut, key, now).push(found);
            }
        }
        if is_cut {
            after_cut.clear();
        }
        owner = Owner::new(&place, after_cut, &mut random);
    }
}

/// Runs lives of many disks, each from its seed and with so many deaths: 100,000
/// deaths in all; SANDGATE_DEATHS sets another number, SANDGATE_SEED begins elsewhere.
pub(crate) fn many(lives: fn(u64, u32)) {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (deaths, seed) = (number("SANDGATE_DEATHS", 100_000), number("SANDGATE_SEED", 0));
    let per_disk = 50;
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                (0..deaths / per_disk)
                    .filter(|disk| disk % threads == thread)
                    .for_each(|disk| lives(seed + disk, per_disk as u32));
            });
        }
    });
}

#[test]
fn what_was_accepted_survives_kills_and_what_is_durable_survives_power_cuts() {
    many(lives);
}
