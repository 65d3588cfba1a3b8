//! The import `can`: frames on granted buses.

use std::sync::Arc;

use wasmtime::component::Resource;

use super::contract::sandgate::driver::can::{CanError, Frame, Overflow};
use super::state::State;
use crate::bus::{self, BASE_ID, EXTENDED_ID, MOST_DATA};
use crate::can::{self, CanBus, Inbox, Keep};
use crate::manifest::RequestKind;

/// A bus, and its name.
pub struct Channel(String, CanBus);
/// The latest frames of a bus.
pub struct Monitor(Arc<Inbox>);
/// All frames of a bus.
pub struct Queue(Arc<Inbox>);

const MAX_IDS: usize = 2048;
const MAX_SIZE: u32 = 1000;
const MAX_INBOXES: usize = 64;

type Outcome<T> = wasmtime::Result<Result<T, CanError>>;

impl From<can::CanError> for CanError {
    fn from(error: can::CanError) -> Self {
        match error {
            can::CanError::Unavailable(text) => CanError::Unavailable(text),
            can::CanError::Busy => CanError::Busy,
        }
    }
}

impl From<bus::Frame> for Frame {
    fn from(frame: bus::Frame) -> Self {
        Frame { id: frame.id, extended: frame.is_extended, data: frame.data }
    }
}

fn invalid<T>(text: String) -> Outcome<T> {
    Ok(Err(CanError::InvalidArgument(text)))
}

impl State {
    pub(super) fn open_channel(&mut self, name: &str) -> Outcome<Resource<Channel>> {
        match self.lines.can.get(name).cloned() {
            Some(bus) => Ok(Ok(self.table.push(Channel(name.to_owned(), bus))?)),
            None => Ok(Err(CanError::NotGranted(self.no_line(RequestKind::Can, name)))),
        }
    }

    pub(super) async fn send_frame(&mut self, channel: Resource<Channel>, frame: Frame) -> Outcome<()> {
        let most = if frame.extended { EXTENDED_ID } else { BASE_ID };
        if frame.id > most {
            return invalid(format!("id: expected 0 to {most}, found {}", frame.id));
        }
        if frame.data.len() > MOST_DATA {
            return invalid(format!("data: expected at most {MOST_DATA} bytes, found {}", frame.data.len()));
        }
        let bus = self.table.get(&channel)?.1.clone();
        let frame = bus::Frame { id: frame.id, is_extended: frame.extended, data: frame.data };
        Ok(bus.send(&self.outlet.device, frame).await.map_err(CanError::from))
    }

    /// Frames of a bus from now on.
    fn subscribe(&mut self, channel: &Resource<Channel>, ids: Vec<u32>, keep: Keep) -> Outcome<Arc<Inbox>> {
        if ids.len() > MAX_IDS {
            return invalid(format!("ids: expected at most {MAX_IDS}, found {}", ids.len()));
        }
        let entries = self.table.iter_mut();
        if entries.filter(|entry| entry.is::<Monitor>() || entry.is::<Queue>()).count() >= MAX_INBOXES {
            return invalid(format!("more than {MAX_INBOXES} monitors and queues; drop those that are not used"));
        }
        let bus = &self.table.get(channel)?.1;
        Ok(Ok(bus.subscribe(&self.outlet.device, ids, keep)))
    }

    /// The bus of a channel, for people.
    pub(super) fn channel_name(&mut self, channel: &Resource<Channel>) -> wasmtime::Result<String> {
        Ok(self.table.get(channel)?.0.clone())
    }

    pub(super) fn monitor(&mut self, channel: &Resource<Channel>, ids: Vec<u32>) -> Outcome<Resource<Monitor>> {
        match self.subscribe(channel, ids, Keep::Latest)? {
            Ok(inbox) => Ok(Ok(self.table.push(Monitor(inbox))?)),
            Err(error) => Ok(Err(error)),
        }
    }

    pub(super) fn queue(
        &mut self,
        channel: &Resource<Channel>,
        (ids, size, overflow): (Vec<u32>, u32, Overflow),
    ) -> Outcome<Resource<Queue>> {
        if !(1..=MAX_SIZE).contains(&size) {
            return invalid(format!("size: expected 1 to {MAX_SIZE} frames, found {size}"));
        }
        let overflow = match overflow {
            Overflow::DropOldest => can::Overflow::DropOldest,
            Overflow::DropNewest => can::Overflow::DropNewest,
        };
        match self.subscribe(channel, ids, Keep::All(size as usize, overflow))? {
            Ok(inbox) => Ok(Ok(self.table.push(Queue(inbox))?)),
            Err(error) => Ok(Err(error)),
        }
    }

    pub(super) fn latest_frames(&mut self, monitor: Resource<Monitor>) -> wasmtime::Result<Vec<Frame>> {
        Ok(self.table.get(&monitor)?.0.pop(MAX_IDS).into_iter().map(Frame::from).collect())
    }

    pub(super) fn queued_frames(&mut self, queue: Resource<Queue>, limit: u32) -> wasmtime::Result<Vec<Frame>> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(self.table.get(&queue)?.0.pop(limit).into_iter().map(Frame::from).collect())
    }

    pub(super) fn dropped_frames(&mut self, queue: Resource<Queue>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&queue)?.0.dropped())
    }
}
