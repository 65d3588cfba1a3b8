//! The contract's imports on the author's machine: the same functions and
//! types, answered by the thread's `testing::FakeHost`.

use std::time::Duration;

use crate::bindings::sandgate::driver as contract;
use crate::testing::with;

fn duration(milliseconds: f64) -> Option<Duration> {
    const YEAR: f64 = 365.0 * 24.0 * 3600.0 * 1000.0;
    (1.0..=YEAR).contains(&milliseconds).then(|| Duration::from_secs_f64(milliseconds / 1000.0))
}

pub mod alerts {
    use super::{contract, with};
    pub use contract::alerts::Alert;

    pub fn set(active: &[Alert]) -> Result<(), Vec<crate::Rejection>> {
        with(|state| state.alerts = Some(active.to_vec()));
        Ok(())
    }

    pub fn unknown() {
        with(|state| state.alerts = None);
    }
}

pub mod blobs {
    use super::{contract, with};
    pub use contract::blobs::BlobError;

    pub fn upload(name: &str, _: &str, bytes: &[u8]) -> Result<String, BlobError> {
        with(|state| state.uploads.push((name.to_owned(), bytes.to_vec())));
        Ok(format!("fake:{name}"))
    }
}

pub mod budget {
    use super::contract;
    pub use contract::budget::Remaining;

    /// A call that has just begun, under the gateway's own limits.
    pub fn left() -> Remaining {
        Remaining { call: 10_000.0, cpu: 500.0 }
    }
}

pub mod can {
    use super::{contract, with};
    pub use contract::can::{CanError, Frame, Overflow};
    use std::collections::BTreeMap;

    fn not_granted(name: &str) -> CanError {
        CanError::NotGranted(format!("the test has no CAN bus {name:?}; expected FakeHost::can({name:?})"))
    }

    /// A granted bus.
    #[derive(Debug)]
    pub struct Channel(String);

    /// The latest frame of each id.
    #[derive(Debug)]
    pub struct Monitor(Inbox);

    /// All frames.
    #[derive(Debug)]
    pub struct Queue(Inbox, u32);

    /// Frames of a bus that were not taken yet.
    #[derive(Debug)]
    struct Inbox {
        bus: String,
        ids: Vec<u32>,
        seen: std::cell::Cell<usize>,
    }

    impl Inbox {
        fn take(&self, limit: usize) -> Vec<Frame> {
            let all = with(|state| state.can.get(&self.bus).map(|bus| bus.heard.clone())).unwrap_or_default();
            let mut taken = Vec::new();
            while let Some(frame) = all.get(self.seen.get()).filter(|_| taken.len() < limit) {
                self.seen.set(self.seen.get() + 1);
                if self.ids.is_empty() || self.ids.contains(&frame.id) {
                    taken.push(frame.clone());
                }
            }
            taken
        }
    }

    impl Channel {
        /// Opens a bus of the fake host.
        pub fn open(name: &str) -> Result<Channel, CanError> {
            let is_known = with(|state| state.can.contains_key(name));
            if is_known { Ok(Channel(name.to_owned())) } else { Err(not_granted(name)) }
        }

        /// Notes a frame.
        pub fn send(&self, frame: &Frame) -> Result<(), CanError> {
            let bus = with(|state| state.can.get_mut(&self.0).map(|bus| bus.sent.push(frame.clone())));
            bus.ok_or_else(|| not_granted(&self.0))
        }

        fn inbox(&self, ids: &[u32]) -> Inbox {
            let seen = with(|state| state.can.get(&self.0).map_or(0, |bus| bus.heard.len()));
            Inbox { bus: self.0.clone(), ids: ids.to_vec(), seen: seen.into() }
        }

        /// The latest frames from now on.
        pub fn monitor(&self, ids: &[u32]) -> Result<Monitor, CanError> {
            Ok(Monitor(self.inbox(ids)))
        }

        /// All frames from now on; here none is dropped.
        pub fn queue(&self, ids: &[u32], size: u32, _: Overflow) -> Result<Queue, CanError> {
            Ok(Queue(self.inbox(ids), size))
        }
    }

    impl Monitor {
        /// Those that came since the last time, by id.
        pub fn pop(&self) -> Vec<Frame> {
            let frames = self.0.take(usize::MAX).into_iter();
            let latest: BTreeMap<(bool, u32), Frame> =
                frames.map(|frame| ((frame.extended, frame.id), frame)).collect();
            latest.into_values().collect()
        }
    }

    impl Queue {
        /// The oldest of them.
        pub fn pop(&self, limit: u32) -> Vec<Frame> {
            self.0.take(usize::try_from(limit.min(self.1)).unwrap_or(usize::MAX))
        }

        /// None is.
        pub fn dropped(&self) -> u64 {
            0
        }
    }
}

pub mod command_log {
    use super::with;

    pub fn write(text: &str) {
        with(|state| state.command_log.push(text.to_owned()));
    }
}

pub mod files {
    use super::with;

    pub fn names() -> Vec<String> {
        with(|state| state.files.keys().cloned().collect())
    }

    pub fn read(name: &str) -> Option<Vec<u8>> {
        with(|state| state.files.get(name).cloned())
    }
}

pub mod http {
    use super::{contract, with};
    pub use contract::http::{Header, HttpError, Request, Response};

    pub fn fetch(request: &Request) -> Result<Response, HttpError> {
        let Some(mut answer) = with(|state| state.http.take()) else {
            let text = format!("{}: the test answers no HTTP; expected FakeHost::http", request.url);
            return Err(HttpError::NotGranted(text));
        };
        let answered = answer(request);
        with(|state| {
            // Unless the answer itself has set another one.
            state.http.get_or_insert(answer);
        });
        answered
    }
}

pub mod io {
    use super::{contract, with};
    use crate::testing::PinState;
    pub use contract::io::{Counter, IoError};

    fn ask<T>(name: &str, act: impl FnOnce(&mut PinState) -> T) -> Result<T, IoError> {
        with(|state| state.pins.get_mut(name).map(act)).ok_or_else(|| {
            IoError::NotGranted(format!("the test has no pin {name:?}; expected FakeHost::pin({name:?})"))
        })
    }

    /// A relay or another output.
    #[derive(Debug)]
    pub struct Output(String);

    impl Output {
        /// Opens a pin of the fake host.
        pub fn open(name: &str) -> Result<Output, IoError> {
            ask(name, |_| Output(name.to_owned()))
        }

        /// Whether it is on.
        pub fn get(&self) -> Result<bool, IoError> {
            ask(&self.0, |pin| pin.on)
        }

        /// Switches it.
        pub fn set(&self, on: bool) -> Result<(), IoError> {
            ask(&self.0, |pin| {
                pin.on = on;
                pin.deeds.push(if on { "on" } else { "off" }.into());
            })
        }

        /// Is noted; there is no time here that could pass.
        pub fn pulse(&self, duration: f64) -> Result<(), IoError> {
            ask(&self.0, |pin| pin.deeds.push(format!("pulse of {duration} ms")))
        }
    }

    /// A contact or another input.
    #[derive(Debug)]
    pub struct Input(String);

    impl Input {
        /// Opens a pin of the fake host.
        pub fn open(name: &str) -> Result<Input, IoError> {
            ask(name, |_| Input(name.to_owned()))
        }

        /// Whether it is on.
        pub fn get(&self) -> Result<bool, IoError> {
            ask(&self.0, |pin| pin.on)
        }

        /// Its pulses, since a minute.
        pub fn count(&self) -> Result<Counter, IoError> {
            ask(&self.0, |pin| Counter { count: pin.count, since: 60_000.0 })
        }

        /// Lets them be counted from here.
        pub fn set_count(&self, count: u64) -> Result<(), IoError> {
            ask(&self.0, |pin| pin.count = count)
        }

        /// Has no effect: nothing bounces here.
        pub fn set_debounce(&self, _: f64) -> Result<(), IoError> {
            ask(&self.0, |_| ())
        }
    }

    /// A voltage, a current or a temperature.
    #[derive(Debug)]
    pub struct Analog(String);

    impl Analog {
        /// Opens a pin of the fake host.
        pub fn open(name: &str) -> Result<Analog, IoError> {
            ask(name, |_| Analog(name.to_owned()))
        }

        /// What it shows.
        pub fn read(&self) -> Result<f64, IoError> {
            ask(&self.0, |pin| pin.value)
        }
    }
}

pub mod logging {
    use super::{contract, with};
    pub use contract::logging::Level;

    pub fn log(level: Level, text: &str) {
        with(|state| state.log.push((level, text.to_owned())));
    }

    pub fn log_persistent(level: Level, text: &str) {
        log(level, text);
    }
}

pub mod metadata {
    use super::{contract, with};
    use crate::{Attribute, Value};
    pub use contract::metadata::MetadataError;
    use std::collections::BTreeMap;

    fn change<R>(act: impl FnOnce(&mut BTreeMap<String, Value>) -> R) -> Result<R, MetadataError> {
        with(|state| state.metadata.as_mut().map(act)).ok_or(MetadataError::Unsupported)
    }

    pub fn keys() -> Result<Vec<String>, MetadataError> {
        change(|entries| entries.keys().cloned().collect())
    }

    pub fn get(keys: &[String]) -> Result<Vec<Attribute>, MetadataError> {
        change(|entries| {
            let wanted = entries.iter().filter(|(key, _)| keys.is_empty() || keys.contains(key));
            wanted.map(|(name, value)| Attribute { name: name.clone(), value: value.clone() }).collect()
        })
    }

    pub fn replace(entries: &[Attribute]) -> Result<(), MetadataError> {
        change(BTreeMap::clear)?;
        merge(entries)
    }

    pub fn merge(news: &[Attribute]) -> Result<(), MetadataError> {
        change(|entries| entries.extend(news.iter().map(|entry| (entry.name.clone(), entry.value.clone()))))
    }

    pub fn delete(keys: &[String]) -> Result<(), MetadataError> {
        change(|entries| entries.retain(|key, _| !keys.contains(key)))
    }
}

pub mod modbus {
    use super::{contract, with};
    use crate::testing::UnitState;
    pub use contract::modbus::ModbusError;
    use std::collections::BTreeMap;

    /// A granted bus and the unit to talk to.
    #[derive(Debug)]
    pub struct Unit {
        key: (String, u8),
    }

    impl Unit {
        /// Opens a unit of the fake host.
        pub fn open(bus: &str, unit: u8) -> Result<Unit, ModbusError> {
            let key = (bus.to_owned(), unit);
            if with(|state| state.units.contains_key(&key)) {
                return Ok(Unit { key });
            }
            let text = format!("the test has no unit {unit} on {bus:?}; expected FakeHost::modbus({bus:?}, {unit})");
            Err(ModbusError::NotGranted(text))
        }

        fn transact<R>(&self, act: impl FnOnce(&mut UnitState) -> Result<R, ModbusError>) -> Result<R, ModbusError> {
            with(|state| match state.units.get_mut(&self.key) {
                Some(UnitState { error: Some(error), .. }) => Err(error.clone()),
                Some(unit) => act(unit),
                None => Err(ModbusError::TimedOut),
            })
        }

        /// Function 1.
        pub fn read_coils(&self, address: u16, count: u16) -> Result<Vec<bool>, ModbusError> {
            self.transact(|unit| read(&unit.coils, address, count))
        }

        /// Function 2.
        pub fn read_discrete_inputs(&self, address: u16, count: u16) -> Result<Vec<bool>, ModbusError> {
            self.transact(|unit| read(&unit.discrete, address, count))
        }

        /// Function 3.
        pub fn read_holding_registers(&self, address: u16, count: u16) -> Result<Vec<u16>, ModbusError> {
            self.transact(|unit| read(&unit.holding, address, count))
        }

        /// Function 4.
        pub fn read_input_registers(&self, address: u16, count: u16) -> Result<Vec<u16>, ModbusError> {
            self.transact(|unit| read(&unit.input, address, count))
        }

        /// Function 5.
        pub fn write_coil(&self, address: u16, value: bool) -> Result<(), ModbusError> {
            self.write_coils(address, &[value])
        }

        /// Function 6.
        pub fn write_register(&self, address: u16, value: u16) -> Result<(), ModbusError> {
            self.write_registers(address, &[value])
        }

        /// Function 15.
        pub fn write_coils(&self, address: u16, values: &[bool]) -> Result<(), ModbusError> {
            self.transact(|unit| {
                write(&mut unit.coils, address, values)?;
                unit.writes.push((address, values.iter().map(|value| u16::from(*value)).collect()));
                Ok(())
            })
        }

        /// Function 16.
        pub fn write_registers(&self, address: u16, values: &[u16]) -> Result<(), ModbusError> {
            self.transact(|unit| {
                write(&mut unit.holding, address, values)?;
                unit.writes.push((address, values.to_vec()));
                Ok(())
            })
        }

        /// Has no effect: nothing takes time here.
        pub fn set_timeout(&self, _: f64) -> Result<(), ModbusError> {
            Ok(())
        }

        /// Has no effect: nothing takes time here.
        pub fn set_pause(&self, _: f64) -> Result<(), ModbusError> {
            Ok(())
        }
    }

    /// Illegal data address.
    const ILLEGAL_ADDRESS: ModbusError = ModbusError::DeviceException(2);

    fn read<T: Copy>(table: &BTreeMap<u16, T>, first: u16, count: u16) -> Result<Vec<T>, ModbusError> {
        let addresses = (0..count).map(|offset| first.checked_add(offset));
        let values = addresses.map(|address| table.get(&address?).copied());
        values.collect::<Option<_>>().ok_or(ILLEGAL_ADDRESS)
    }

    fn write<T: Copy>(table: &mut BTreeMap<u16, T>, first: u16, values: &[T]) -> Result<(), ModbusError> {
        read(table, first, u16::try_from(values.len()).unwrap_or(u16::MAX))?;
        table.extend((first..).zip(values.iter().copied()));
        Ok(())
    }
}

pub mod net {
    use super::{contract, with};
    pub use contract::net::NetError;
    use std::cell::RefCell;

    /// An open TCP connection.
    #[derive(Debug)]
    pub struct TcpConnection {
        peer: (String, u16),
        received: RefCell<Vec<u8>>,
    }

    impl TcpConnection {
        /// Connects to a peer of the fake host.
        pub fn connect(host: &str, port: u16, _: f64) -> Result<TcpConnection, NetError> {
            let peer = (host.to_owned(), port);
            if with(|state| state.peers.contains_key(&peer)) {
                return Ok(TcpConnection { peer, received: RefCell::default() });
            }
            let text = format!("{host}:{port}: the test has no such peer; expected FakeHost::tcp({host:?}, {port}, …)");
            Err(NetError::NotGranted(text))
        }

        /// Sends all bytes; what the peer answers can be received.
        pub fn send(&self, bytes: &[u8], _: f64) -> Result<(), NetError> {
            let Some(mut answer) = with(|state| state.peers.remove(&self.peer)) else { return Err(NetError::Closed) };
            self.received.borrow_mut().extend(answer(bytes));
            with(|state| drop(state.peers.insert(self.peer.clone(), answer)));
            Ok(())
        }

        /// Gives what the peer has answered; without any, the time is out at once.
        pub fn receive(&self, limit: u32, _: f64) -> Result<Vec<u8>, NetError> {
            let mut received = self.received.borrow_mut();
            let end = received.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
            if end == 0 { Err(NetError::TimedOut) } else { Ok(received.drain(..end).collect()) }
        }
    }
}

pub mod properties {
    use super::with;
    use crate::{Attribute, SendError};

    pub fn publish(attributes: &[Attribute]) -> Result<(), SendError> {
        let news = attributes.iter().map(|attribute| (attribute.name.clone(), attribute.value.clone()));
        with(|state| state.properties.extend(news));
        Ok(())
    }
}

pub mod serial {
    use super::{contract, with};
    pub use contract::serial::{Parity, SerialError, Settings};
    use std::cell::RefCell;

    /// A granted port.
    #[derive(Debug)]
    pub struct Port {
        name: String,
        received: RefCell<Vec<u8>>,
    }

    impl Port {
        /// Opens a port of the fake host.
        pub fn open(name: &str) -> Result<Port, SerialError> {
            if with(|state| state.ports.contains_key(name)) {
                return Ok(Port { name: name.to_owned(), received: RefCell::default() });
            }
            let text = format!("the test has no serial port {name:?}; expected FakeHost::serial({name:?}, …)");
            Err(SerialError::NotGranted(text))
        }

        /// 9600 bits a second, 8 data bits, no parity, 1 stop bit.
        pub fn settings(&self) -> Settings {
            Settings { baud_rate: 9600, data_bits: 8, parity: Parity::None, stop_bits: 1 }
        }

        /// Writes all bytes; what the device answers can be read.
        pub fn write(&self, bytes: &[u8]) -> Result<(), SerialError> {
            let Some(mut answer) = with(|state| state.ports.remove(&self.name)) else {
                return Err(SerialError::Unavailable("the test has a new host".into()));
            };
            self.received.borrow_mut().extend(answer(bytes));
            with(|state| drop(state.ports.insert(self.name.clone(), answer)));
            Ok(())
        }

        /// What the device has answered; without any, the time is out at once.
        pub fn read(&self, limit: u32, _: f64) -> Result<Vec<u8>, SerialError> {
            self.take(|received| (!received.is_empty()).then_some(received.len()), limit)
        }

        /// So many bytes of it.
        pub fn read_exact(&self, count: u32, _: f64) -> Result<Vec<u8>, SerialError> {
            let wanted = usize::try_from(count).unwrap_or(usize::MAX);
            self.take(|received| (received.len() >= wanted).then_some(wanted), count)
        }

        /// Up to the delimiter.
        pub fn read_until(&self, delimiter: &[u8], limit: u32, _: f64) -> Result<Vec<u8>, SerialError> {
            let length = delimiter.len().max(1);
            let end = |received: &[u8]| received.windows(length).position(|bytes| bytes == delimiter);
            self.take(|received| end(received).map(|place| place + length), limit)
        }

        /// All of it.
        pub fn read_frame(&self, _: f64, limit: u32, timeout: f64) -> Result<Vec<u8>, SerialError> {
            self.read(limit, timeout)
        }

        fn take(&self, enough: impl Fn(&[u8]) -> Option<usize>, limit: u32) -> Result<Vec<u8>, SerialError> {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let mut received = self.received.borrow_mut();
            let found = enough(&received).or((received.len() >= limit).then_some(limit));
            let end = found.map(|end| end.min(limit)).ok_or(SerialError::TimedOut)?;
            Ok(received.drain(..end).collect())
        }

        /// Throws away what the device has answered.
        pub fn discard(&self) -> Result<(), SerialError> {
            self.received.borrow_mut().clear();
            Ok(())
        }

        /// Has no effect: nobody else is here.
        pub fn release(&self) {}
    }
}

pub mod storage {
    use super::{contract, with};
    pub use contract::storage::StorageError;

    const LONGEST_KEY: usize = 256;

    fn check(key: &str) -> Result<(), StorageError> {
        if (1..=LONGEST_KEY).contains(&key.len()) { Ok(()) } else { Err(StorageError::InvalidKey) }
    }

    pub fn get(key: &str) -> Result<Option<Vec<u8>>, StorageError> {
        check(key)?;
        Ok(with(|state| state.stored.get(key).cloned()))
    }

    pub fn set(key: &str, value: &[u8]) -> Result<(), StorageError> {
        check(key)?;
        with(|state| drop(state.stored.insert(key.to_owned(), value.to_vec())));
        Ok(())
    }

    pub fn delete(key: &str) -> Result<(), StorageError> {
        check(key)?;
        with(|state| drop(state.stored.remove(key)));
        Ok(())
    }

    pub fn keys() -> Result<Vec<String>, StorageError> {
        Ok(with(|state| state.stored.keys().cloned().collect()))
    }
}

pub mod telemetry {
    use super::{contract, with};
    use crate::{FlushError, SendError};
    pub use contract::telemetry::Sample;

    pub fn send(sample: &Sample) -> Result<(), SendError> {
        with(|state| state.samples.push(sample.clone()));
        Ok(())
    }

    pub fn flush() -> Result<(), FlushError> {
        Ok(())
    }
}

pub mod timers {
    use super::{contract, duration, with};
    pub use contract::timers::{TimerError, TimerId};

    pub fn every(interval: f64) -> Result<TimerId, TimerError> {
        let time = duration(interval).ok_or(TimerError::InvalidTime)?;
        Ok(with(|state| {
            state.next_timer += 1;
            state.timers.insert(state.next_timer, time);
            state.next_timer
        }))
    }

    pub fn after(delay: f64) -> Result<TimerId, TimerError> {
        every(delay)
    }

    pub fn cancel(id: TimerId) {
        with(|state| state.timers.retain(|known, _| *known != id));
    }
}
