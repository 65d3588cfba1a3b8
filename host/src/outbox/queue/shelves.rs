//! What of a queue is on the disk only: what is left there, and what is loaded next.

use super::device::Rank;
use super::{Entry, Place, Queue};
use crate::message::DeviceId;
use crate::outbox::log::OnShelf;
use crate::outbox::record::Message;
use crate::outbox::stored::{OVERHEAD, Shelf, Stored};
use crate::outbox::{Class, Sequence};

/// The size of an entry, as far as it matters how many are loaded.
const TYPICAL: usize = 256;

impl Queue {
    /// What goes later than it could be loaded again stays on the disk. Somebody
    /// waits for answers.
    pub(super) fn is_to_store(&self, rank: Rank, device: &DeviceId) -> bool {
        match rank {
            Rank::Answer => false,
            Rank::Live => self.loaded_bytes > self.bounds.full(),
            Rank::Ordinary => {
                let has_stored = self.devices.get(device).is_some_and(|queue| !queue.shelf.is_empty());
                has_stored || self.loaded_bytes > self.bounds.enough()
            }
        }
    }

    pub(super) fn store(&mut self, device: &DeviceId, class: Class, entry: Stored) {
        let Some(queue) = self.devices.get_mut(device) else { return };
        self.shelves += usize::from(queue.shelf.is_empty());
        queue.shelf.insert(class, entry);
        self.look_at_shelf(device);
    }

    /// Stores a loaded entry that is in the log by now, if what is stored goes
    /// before it, or if there is enough in memory.
    pub(in crate::outbox) fn store_again(&mut self, sequence: Sequence) {
        let Some(Entry { message, place: Place::Unsent, spot: Some(spot) }) = self.entries.get(&sequence) else {
            return;
        };
        let (device, class, cost, accepted) = (message.device.clone(), message.class, message.cost(), message.moment);
        let stored = Stored::new(sequence, *spot, cost - OVERHEAD, accepted);
        let Some(queue) = self.devices.get_mut(&device) else { return };
        let is_behind = queue.shelf.first(false).is_some_and(|first| first < sequence);
        if class == Class::Answer || !(is_behind || self.loaded_bytes > self.bounds.enough()) {
            return;
        }
        queue.take_out(sequence);
        queue.unsent_bytes -= cost;
        self.loaded_bytes -= cost;
        self.entries.remove(&sequence);
        self.store(&device, class, stored);
        self.tidy(&device);
    }

    /// Takes over the stored entries of a device that has none.
    pub(in crate::outbox) fn restore(&mut self, device: &DeviceId, shelf: Shelf) {
        if shelf.is_empty() {
            return;
        }
        self.note(device, shelf.len(), shelf.all().map(|(_, entry)| entry.cost as usize).sum());
        if let Some(queue) = self.devices.get_mut(device) {
            queue.shelf = shelf;
            self.shelves += 1;
        }
        self.look_at_shelf(device);
    }

    /// Puts a device with a shelf in line when little of it is loaded.
    pub(super) fn look_at_shelf(&mut self, device: &DeviceId) {
        let share = self.share();
        let Some(queue) = self.devices.get_mut(device).filter(|queue| !queue.is_hungry) else { return };
        if !queue.shelf.is_empty() && (queue.ready() <= share / 2 || queue.shelf.first(true).is_some()) {
            queue.is_hungry = true;
            self.hungry.push_back(device.clone());
        }
    }

    /// How many entries of a device are loaded when all share alike.
    pub(super) fn share(&self) -> usize {
        self.bounds.ahead() / TYPICAL / self.shelves.max(1)
    }

    /// Whether some entries are to be loaded.
    pub(in crate::outbox) fn wants_to_load(&self) -> bool {
        !self.hungry.is_empty()
    }

    /// The next stored entries of the next devices, about as many as asked.
    pub(in crate::outbox) fn next_to_load(&mut self, number: usize) -> Vec<OnShelf> {
        let (share, mut all) = (self.share(), Vec::<OnShelf>::new());
        let mut bytes = self.loaded_bytes;
        for _ in 0..self.hungry.len() {
            if all.len() >= number {
                break;
            }
            let Some(device) = self.hungry.pop_front() else { break };
            let is_admitted = self.is_admitted(&device);
            let Some(queue) = self.devices.get_mut(&device) else { continue };
            queue.is_hungry = false;
            if !is_admitted {
                continue;
            }
            let ready = queue.ready();
            // What fills memory may be waiting for what is stored: that gets one entry for each device.
            let is_full = bytes >= self.bounds.full();
            if is_full && ready > 0 {
                queue.is_hungry = true;
                self.hungry.push_back(device);
                continue;
            }
            let wanted = if is_full { 1 } else { share.saturating_sub(ready).max(1) };
            for (class, entry) in queue.shelf.next().take(wanted.min(number - all.len())) {
                bytes += entry.cost as usize;
                all.push((device.clone(), class, entry));
                if bytes >= self.bounds.full() {
                    break;
                }
            }
        }
        all
    }

    /// An entry was read from the disk; none when it is damaged. It may have
    /// been dropped meanwhile, or lie elsewhere now.
    pub(in crate::outbox) fn load(&mut self, (device, class, read): &OnShelf, message: Option<Message>) {
        let class = *class;
        let Some(queue) = self.devices.get_mut(device) else { return };
        let Some(entry) = queue.shelf.find(class, read.sequence).copied() else { return };
        match message {
            Some(message) => {
                queue.shelf.remove(class, read.sequence);
                self.shelves -= usize::from(queue.shelf.is_empty());
                let rank = if class == Class::Answer { Rank::Answer } else { Rank::Ordinary };
                self.insert(entry.sequence, Entry::unsent(message, Some(entry.spot)), rank);
            }
            None if entry.spot == read.spot => {
                self.drop_stored(device, class, entry.sequence, |drops| drops.damaged += 1);
            }
            // It is read again, where it lies now.
            None => {}
        }
    }

    /// Entries of a device were loaded.
    pub(in crate::outbox) fn loaded(&mut self, device: &DeviceId) {
        self.schedule(device);
        self.look_at_shelf(device);
    }

    /// Takes an entry off a device's shelf.
    pub(super) fn remove_stored(&mut self, device: &DeviceId, class: Class, sequence: Sequence) -> Option<Stored> {
        let queue = self.devices.get_mut(device)?;
        let entry = queue.shelf.remove(class, sequence)?;
        self.shelves -= usize::from(queue.shelf.is_empty());
        self.gone.push((sequence, entry.spot));
        self.forget(device, entry.cost as usize);
        Some(entry)
    }

    /// The same for several, whose numbers are in order; gives how many there were.
    pub(super) fn remove_all_stored(&mut self, device: &DeviceId, class: Class, sequences: &[Sequence]) -> usize {
        let Some(queue) = self.devices.get_mut(device) else { return 0 };
        let entries = queue.shelf.remove_all(class, sequences);
        self.shelves -= usize::from(!entries.is_empty() && queue.shelf.is_empty());
        for entry in &entries {
            self.gone.push((entry.sequence, entry.spot));
            self.forget(device, entry.cost as usize);
        }
        entries.len()
    }
}
