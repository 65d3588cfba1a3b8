//! Lines to Modbus TCP servers that nobody has configured.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Bus, BusLine, LONGEST_QUARANTINE, Line, QUEUE, Transaction, Way};

/// Modbus TCP by address: a line for each, shared by whoever opens it. It stays a
/// while after its last handle, so that it remembers who is silent. Clones are the same.
#[derive(Clone, Default)]
pub struct TcpLines(Arc<Mutex<HashMap<Vec<SocketAddr>, Opened>>>);

/// A line to an address, and when it was opened last.
type Opened = (mpsc::Sender<Transaction>, Instant);

impl TcpLines {
    /// How long units may take when nobody says otherwise.
    const TIMEOUT: Duration = Duration::from_secs(1);
    /// From so many on none stays that nobody has.
    const MOST: usize = 1000;

    /// The line to a server by all its addresses; who asks has been allowed to reach them.
    pub fn open(&self, mut addresses: Vec<SocketAddr>) -> BusLine {
        // Name servers give them in turn.
        addresses.sort_unstable();
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((line, used)) = lines.get_mut(&addresses) {
            *used = Instant::now();
            return BusLine(Way::Task(line.clone()));
        }
        let is_full = lines.len() >= TcpLines::MOST;
        let stays = |used: &Instant| !is_full && used.elapsed() < LONGEST_QUARANTINE;
        lines.retain(|_, (line, used)| line.strong_count() > 1 || stays(used));
        let line = Line::Addresses(addresses.clone());
        let bus = Bus::new(&format!("tcp://{line}"), line, TcpLines::TIMEOUT, Duration::ZERO);
        let (line, inbox) = mpsc::channel(QUEUE);
        tokio::spawn(bus.run(inbox));
        lines.insert(addresses, (line.clone(), Instant::now()));
        BusLine(Way::Task(line))
    }
}
