//! CAN buses that the host owns: a task for each, which hands what comes to those
//! who have asked for it.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use socketcan::tokio::CanSocket;
use socketcan::{CanFrame, EmbeddedFrame, ExtendedId, Frame as _, StandardId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use crate::bus::{Frame, Retry, Simulation, Wire};
use crate::config::Can;
use crate::message::DeviceId;

/// Frames that may wait to be sent.
const OUTGOING: usize = 64;
/// How long a frame may take to be sent: a bus on which nobody listens takes none.
const PATIENCE: Duration = Duration::from_secs(1);
/// The latest frames that one who asked for all ids may have.
const MOST_LATEST: usize = 2048;

/// Why a frame was not sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CanError {
    /// The bus cannot be used.
    Unavailable(String),
    /// Too many frames wait.
    Busy,
}

/// A bus, for all devices that may use it. Clones are the same.
#[derive(Clone)]
pub struct CanBus {
    inboxes: Inboxes,
    outgoing: mpsc::Sender<Outgoing>,
}

/// Those of all who have asked for frames.
type Inboxes = Arc<Mutex<Vec<Weak<Inbox>>>>;

struct Outgoing {
    frame: Frame,
    device: DeviceId,
    sent: oneshot::Sender<Result<(), CanError>>,
}

/// What becomes of frames for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// The oldest go.
    DropOldest,
    /// The newest are not taken.
    DropNewest,
}

/// How frames are kept until they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The latest of each id.
    Latest,
    /// All of them, up to a number.
    All(usize, Overflow),
}

/// Frames for one who asked for them.
pub struct Inbox {
    device: DeviceId,
    /// Sorted; none for all.
    ids: Vec<u32>,
    keep: Keep,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    latest: BTreeMap<(bool, u32), Frame>,
    queue: VecDeque<Frame>,
    dropped: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inbox {
    /// Takes what has come, the oldest first, or by id.
    pub fn pop(&self, limit: usize) -> Vec<Frame> {
        let mut kept = lock(&self.kept);
        let Kept { latest, queue, .. } = &mut *kept;
        match self.keep {
            Keep::Latest => std::iter::from_fn(|| latest.pop_first().map(|(_, frame)| frame)).take(limit).collect(),
            Keep::All(..) => {
                let count = queue.len().min(limit);
                queue.drain(..count).collect()
            }
        }
    }

    /// How many frames were dropped since this was asked last.
    pub fn dropped(&self) -> u64 {
        std::mem::take(&mut lock(&self.kept).dropped)
    }

    fn take(&self, frame: &Frame) {
        if !self.ids.is_empty() && self.ids.binary_search(&frame.id).is_err() {
            return;
        }
        let mut kept = lock(&self.kept);
        match self.keep {
            Keep::Latest => {
                let key = (frame.is_extended, frame.id);
                if kept.latest.len() < MOST_LATEST || kept.latest.contains_key(&key) {
                    kept.latest.insert(key, frame.clone());
                } else {
                    kept.dropped += 1;
                }
            }
            Keep::All(size, overflow) => {
                if kept.queue.len() >= size {
                    kept.dropped += 1;
                    if overflow == Overflow::DropNewest {
                        return;
                    }
                    kept.queue.pop_front();
                }
                kept.queue.push_back(frame.clone());
            }
        }
    }
}

impl CanBus {
    /// A bus of this machine, or a simulated one.
    pub fn open(name: &str, settings: &Can, simulation: Option<Arc<dyn Simulation>>) -> CanBus {
        let (outgoing, wanted) = mpsc::channel(OUTGOING);
        let inboxes = Inboxes::default();
        let (name, interface, inboxes_of_task) = (name.to_owned(), settings.interface.clone(), Arc::clone(&inboxes));
        let bus = Bus { name, interface, simulation, retry: Retry::default(), inboxes: inboxes_of_task, wanted };
        tokio::spawn(bus.run());
        CanBus { inboxes, outgoing }
    }

    /// Sends a frame, which the other devices on the bus get as well.
    pub async fn send(&self, device: &DeviceId, frame: Frame) -> Result<(), CanError> {
        let (sent, is_sent) = oneshot::channel();
        let outgoing = Outgoing { frame, device: device.clone(), sent };
        self.outgoing.try_send(outgoing).map_err(|_| CanError::Busy)?;
        is_sent.await.unwrap_or_else(|_| Err(CanError::Unavailable("the bus is closed".into())))
    }

    /// Asks for frames with these ids, or for all.
    pub fn subscribe(&self, device: &DeviceId, mut ids: Vec<u32>, keep: Keep) -> Arc<Inbox> {
        ids.sort_unstable();
        let inbox = Arc::new(Inbox { device: device.clone(), ids, keep, kept: Mutex::default() });
        let mut inboxes = lock(&self.inboxes);
        inboxes.retain(|inbox| inbox.strong_count() > 0);
        inboxes.push(Arc::downgrade(&inbox));
        inbox
    }
}

/// The task of a bus.
struct Bus {
    name: String,
    interface: String,
    simulation: Option<Arc<dyn Simulation>>,
    retry: Retry,
    inboxes: Inboxes,
    wanted: mpsc::Receiver<Outgoing>,
}

/// What is open.
enum Line {
    Socket(CanSocket),
    Simulated(Wire),
}

impl Bus {
    async fn run(mut self) {
        loop {
            match self.connect() {
                Ok(line) => {
                    if self.retry.succeeded() {
                        tracing::info!(bus = self.name, "{} is there", self.interface);
                    }
                    match self.serve(line).await {
                        Some(error) => self.lost(&error).await,
                        None => return,
                    }
                }
                Err(error) => self.lost(&error).await,
            }
            if self.wanted.is_closed() {
                return;
            }
        }
    }

    fn connect(&self) -> io::Result<Line> {
        match &self.simulation {
            Some(simulation) => simulation.can(&self.name).map(Line::Simulated),
            None => CanSocket::open(&self.interface).map(Line::Socket),
        }
    }

    /// Goes on until the bus is lost, or nobody has it any more.
    async fn serve(&mut self, mut line: Line) -> Option<io::Error> {
        loop {
            tokio::select! {
                frame = line.receive() => match frame {
                    Ok(frame) => self.distribute(&frame, None),
                    Err(error) => return Some(error),
                },
                outgoing = self.wanted.recv() => {
                    let Outgoing { frame, device, sent } = outgoing?;
                    let result = timeout(PATIENCE, line.send(&frame)).await;
                    let result = result.unwrap_or_else(|_| Err(io::Error::other("nobody takes frames from the bus")));
                    tracing::debug!(bus = self.name, device = device.as_str(), "sends {frame}: {result:?}");
                    if result.is_ok() {
                        self.distribute(&frame, Some(&device));
                    }
                    // Whoever asked may be gone.
                    let told = result.map_err(|error| CanError::Unavailable(format!("{}: {error}", self.interface)));
                    let _ = sent.send(told);
                }
            }
        }
    }

    /// Hands a frame to all who want it, but for who has sent it.
    fn distribute(&self, frame: &Frame, from: Option<&DeviceId>) {
        let inboxes: Vec<Arc<Inbox>> = lock(&self.inboxes).iter().filter_map(Weak::upgrade).collect();
        inboxes.iter().filter(|inbox| from != Some(&inbox.device)).for_each(|inbox| inbox.take(frame));
    }

    /// Refuses what is to be sent until the bus is tried again.
    async fn lost(&mut self, error: &io::Error) {
        let text = format!("{} cannot be used: {error}", self.interface);
        if self.retry.failed() {
            tracing::warn!(bus = self.name, "{text}");
        }
        let again = self.retry.at().unwrap_or_else(Instant::now);
        loop {
            tokio::select! {
                () = sleep_until(again) => return,
                outgoing = self.wanted.recv() => match outgoing {
                    // The same.
                    Some(outgoing) => drop(outgoing.sent.send(Err(CanError::Unavailable(text.clone())))),
                    None => return,
                }
            }
        }
    }
}

impl Line {
    async fn receive(&mut self) -> io::Result<Frame> {
        loop {
            match self {
                Line::Simulated(wire) => {
                    return wire.incoming.recv().await.ok_or_else(|| io::Error::other("the device is gone"));
                }
                Line::Socket(socket) => {
                    let frame = socket.read_frame().await?;
                    // Others are errors of the bus, and requests without data.
                    if let CanFrame::Data(data) = &frame {
                        let id = frame.raw_id();
                        return Ok(Frame { id, is_extended: frame.is_extended(), data: data.data().to_vec() });
                    }
                }
            }
        }
    }

    async fn send(&mut self, frame: &Frame) -> io::Result<()> {
        match self {
            Line::Simulated(wire) => {
                wire.outgoing.send(frame.clone()).await.map_err(|_| io::Error::other("the device is gone"))
            }
            Line::Socket(socket) => {
                let data = frame.data.as_slice();
                let made = match frame.is_extended {
                    true => ExtendedId::new(frame.id).and_then(|id| CanFrame::new(id, data)),
                    false => {
                        u16::try_from(frame.id).ok().and_then(StandardId::new).and_then(|id| CanFrame::new(id, data))
                    }
                };
                socket.write_frame(made.ok_or_else(|| io::Error::other("no frame of CAN"))?).await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox(ids: Vec<u32>, keep: Keep) -> Inbox {
        Inbox { device: DeviceId::new("a"), ids, keep, kept: Mutex::default() }
    }

    fn frames(texts: &[&str]) -> Vec<Frame> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn an_inbox_keeps_the_latest_or_so_many_and_counts_what_it_drops() {
        let sent = frames(&["001#01", "002#02", "001#03", "00000001#04", "003#05"]);
        let kept = |keep, ids: &[u32]| {
            let inbox = inbox(ids.to_vec(), keep);
            sent.iter().for_each(|frame| inbox.take(frame));
            let popped: Vec<String> = inbox.pop(100).iter().map(ToString::to_string).collect();
            assert!(inbox.pop(100).is_empty());
            (popped, inbox.dropped())
        };
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(kept(Keep::Latest, &[1, 2]), (texts(&["001#03", "002#02", "00000001#04"]), 0));
        assert_eq!(kept(Keep::All(2, Overflow::DropOldest), &[]), (texts(&["00000001#04", "003#05"]), 3));
        assert_eq!(kept(Keep::All(2, Overflow::DropNewest), &[]), (texts(&["001#01", "002#02"]), 3));
        assert_eq!(kept(Keep::All(9, Overflow::DropNewest), &[3]), (texts(&["003#05"]), 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_bus_that_is_not_there_refuses_and_is_tried_again() {
        let settings = Can { interface: "sandgate-none".into() };
        let bus = CanBus::open("bus", &settings, None);
        let device = DeviceId::new("a");
        let frame: Frame = "123#01".parse().unwrap();
        for _ in 0..2 {
            let refused = bus.send(&device, frame.clone()).await.unwrap_err();
            assert!(matches!(&refused, CanError::Unavailable(text) if text.contains("sandgate-none")), "{refused:?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
