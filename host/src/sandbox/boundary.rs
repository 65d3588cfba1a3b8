//! What crosses between a driver and the host: each export and import with the
//! number that it has on tapes, and the way of each import over the tape to
//! what does it. Numbers are never used for anything else.
//!
//! Of WASI, what tells a driver something that it cannot know is here as well:
//! clocks, chance, which of several things has happened first. Files, arguments
//! and the environment are empty and always the same; sockets are not on tapes.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use wasmtime::component::{HasSelf, Linker, Resource};
use wasmtime_wasi::clocks::WasiClocksView;
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::clocks::{monotonic_clock, wall_clock};
use wasmtime_wasi::p2::bindings::io::poll;
use wasmtime_wasi::p2::bindings::random::{insecure, insecure_seed, random};
use wasmtime_wasi::{WasiView, random::WasiRandomCtx};

use super::can::{Channel, Monitor, Queue};
use super::contract::exports::sandgate::driver::device_driver::{Command, CommandError, Context};
use super::contract::sandgate::driver as wit;
use super::io::{Analog, Input, Output};
use super::modbus::Unit;
use super::net::Connection;
use super::serial::Port;
use super::state::State;
use crate::message::{Attribute, Rejection};
use crate::tape::Ended;
use wit::alerts::Alert;
use wit::blobs::BlobError;
use wit::budget::Remaining;
use wit::can::{CanError, Frame, Overflow};
use wit::http::{Header, HttpError, Request, Response};
use wit::io::{Counter, IoError};
use wit::logging::Level;
use wit::metadata::MetadataError;
use wit::modbus::ModbusError;
use wit::net::NetError;
use wit::serial::{SerialError, Settings};
use wit::storage::StorageError;
use wit::telemetry::{FlushError, Sample, SendError};
use wit::timers::{TimerError, TimerId};

/// Of clocks, in ns.
const RESOLUTION: u32 = 1000;

/// Something that crosses: what it is called, and how it is shown.
pub struct Crossing {
    /// Its number on tapes.
    pub number: u8,
    /// Its name, such as `telemetry.send`.
    pub name: &'static str,
    /// Arguments for people.
    pub show_arguments: fn(&[u8]) -> String,
    /// An answer, or the result of an export.
    pub show_answer: fn(&[u8]) -> String,
}

/// Bytes of a tape as what they are.
fn show<T: DeserializeOwned + Debug>(bytes: &[u8]) -> String {
    postcard::from_bytes::<T>(bytes)
        .map_or_else(|error| format!("{} bytes ({error})", bytes.len()), |value| format!("{value:?}"))
}

/// What an export gives, or how it ended without.
type Ends<T> = Result<T, Ended>;

macro_rules! exports {
    ($($(#[$documentation:meta])* $number:literal $export:ident $name:literal ($arguments:ty) -> $result:ty;)*) => {
        /// What the host calls.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Export {
            $($(#[$documentation])* $export = $number),*
        }

        impl Export {
            /// All of them.
            pub const ALL: &[Export] = &[$(Export::$export),*];

            /// As people know it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Export::$export => $name),*
                }
            }
        }

        /// What the host calls, for people.
        static EXPORTS: &[Crossing] = &[$(Crossing {
            number: $number,
            name: $name,
            show_arguments: show::<$arguments>,
            show_answer: show::<Ends<$result>>,
        }),*];
    };
}

exports! {
    /// The making of an instance, which runs what the language begins with.
    1 Instantiation "instantiation" (()) -> ();
    /// `device-driver.start`.
    2 Start "start" (Context) -> Result<(), String>;
    /// `device-driver.on-timer`.
    3 OnTimer "on-timer" (TimerId) -> Result<(), String>;
    /// `device-driver.handle-command`.
    4 HandleCommand "handle-command" (Command) -> Result<Vec<Attribute>, CommandError>;
    /// `device-driver.configure`.
    5 Configure "configure" (String) -> Result<(), String>;
    /// `device-driver.stop`.
    6 Stop "stop" (()) -> ();
    /// `migration.snapshot`.
    7 Snapshot "snapshot" (()) -> (Vec<u8>,);
    /// `migration.restore`.
    8 Restore "restore" (Vec<u8>) -> (Result<(), String>,);
    /// `firmware.version`.
    9 FirmwareVersion "firmware.version" (()) -> (Result<String, String>,);
    /// `firmware.begin`.
    10 FirmwareBegin "firmware.begin" ((String, String, u32)) -> (Result<(), String>,);
    /// `firmware.write`.
    11 FirmwareWrite "firmware.write" (Vec<u8>) -> (Result<(), String>,);
    /// `firmware.finish`.
    12 FirmwareFinish "firmware.finish" (()) -> (Result<(), String>,);
    /// `check.problems` of the Lua runtime.
    13 ScriptProblems "check.problems" (()) -> (Vec<String>,);
}

/// An import that goes over the tape: asked there first, and told there.
macro_rules! crossing {
    ([$number:literal fn] $name:ident($($argument:ident: $kind:ty),*) -> $answer:ty = $does:ident) => {
        fn $name(&mut self, $($argument: $kind),*) -> wasmtime::Result<$answer> {
            if let Some(answer) = self.deck.import($number, false, &($(&$argument,)*))? {
                return Ok(answer);
            }
            let answer = self.$does($($argument),*);
            self.deck.answered(false, &answer);
            Ok(answer)
        }
    };
    ([$number:literal async fn] $name:ident($($argument:ident: $kind:ty),*) -> $answer:ty = $does:ident) => {
        async fn $name(&mut self, $($argument: $kind),*) -> wasmtime::Result<$answer> {
            if let Some(answer) = self.deck.import($number, true, &($(&$argument,)*))? {
                return Ok(answer);
            }
            let answer = self.$does($($argument),*).await;
            self.deck.answered(true, &answer);
            Ok(answer)
        }
    };
    ([$number:literal handle fn] $name:ident($handle:ty $(, $argument:ident: $kind:ty)*) -> $answer:ty = $does:ident) => {
        fn $name(&mut self, handle: Resource<$handle> $(, $argument: $kind)*) -> wasmtime::Result<$answer> {
            if let Some(answer) = self.deck.import($number, false, &(handle.rep(), $(&$argument,)*))? {
                return Ok(answer);
            }
            let answer = self.$does(handle $(, $argument)*)?;
            self.deck.answered(false, &answer);
            Ok(answer)
        }
    };
    ([$number:literal handle async fn] $name:ident($handle:ty $(, $argument:ident: $kind:ty)*) -> $answer:ty = $does:ident) => {
        async fn $name(&mut self, handle: Resource<$handle> $(, $argument: $kind)*) -> wasmtime::Result<$answer> {
            if let Some(answer) = self.deck.import($number, true, &(handle.rep(), $(&$argument,)*))? {
                return Ok(answer);
            }
            let answer = self.$does(handle $(, $argument)*).await?;
            self.deck.answered(true, &answer);
            Ok(answer)
        }
    };
    // Written out below.
    ([$number:literal own] $($rest:tt)*) => {};
}

/// The arguments of an import as they are on a tape.
macro_rules! arguments {
    (($handle:ty $(, $argument:ident: $kind:ty)*)) => { (u32, $($kind,)*) };
    (($($argument:ident: $kind:ty),*)) => { ($($kind,)*) };
}

macro_rules! imports {
    ($(
        impl $($host:ident)::+ as $interface:literal {
            $([$number:literal $($how:tt)*] $name:ident $arguments:tt -> $answer:ty $(= $does:ident)?;)*
            $(own { $($own:tt)* })?
        }
    )*) => {
        $(
            impl $($host)::+ for State {
                $(crossing! { [$number $($how)*] $name $arguments -> $answer $(= $does)? })*
                $($($own)*)?
            }
        )*

        /// What drivers ask, for people.
        static IMPORTS: &[Crossing] = &[$($(Crossing {
            number: $number,
            name: concat!($interface, ".", stringify!($name)),
            show_arguments: show::<arguments!($arguments)>,
            show_answer: show::<$answer>,
        },)*)*];
    };
}

type Text = String;
type Bytes = Vec<u8>;

imports! {
    impl wit::telemetry::Host as "telemetry" {
        [1 fn] send(sample: Sample) -> Result<(), SendError> = send_sample;
        [2 async fn] flush() -> Result<(), FlushError> = flush_telemetry;
    }
    impl wit::properties::Host as "properties" {
        [3 fn] publish(attributes: Vec<Attribute>) -> Result<(), SendError> = publish_properties;
    }
    impl wit::alerts::Host as "alerts" {
        [4 fn] set(active: Vec<Alert>) -> Result<(), Vec<Rejection>> = set_alerts;
        [5 fn] unknown() -> () = alerts_are_unknown;
    }
    impl wit::logging::Host as "logging" {
        [6 fn] log(level: Level, text: Text) -> () = write_log;
        [38 fn] log_persistent(level: Level, text: Text) -> () = write_persistent_log;
    }
    impl wit::command_log::Host as "command-log" {
        [7 fn] write(text: Text) -> () = write_command_log;
    }
    impl wit::timers::Host as "timers" {
        [8 fn] every(interval: f64) -> Result<TimerId, TimerError> = set_timer_every;
        [9 fn] after(delay: f64) -> Result<TimerId, TimerError> = set_timer_after;
        [10 fn] cancel(id: TimerId) -> () = cancel_timer;
    }
    impl wit::storage::Host as "storage" {
        [11 async fn] get(key: Text) -> Result<Option<Bytes>, StorageError> = stored_value;
        [12 async fn] set(key: Text, value: Bytes) -> Result<(), StorageError> = store_value;
        [13 async fn] delete(key: Text) -> Result<(), StorageError> = delete_value;
        [14 async fn] keys() -> Result<Vec<Text>, StorageError> = stored_keys;
    }
    impl wit::net::Host as "net" {}
    impl wit::net::HostTcpConnection as "net.tcp-connection" {
        [15 own] connect(host: Text, port: u16, timeout: f64) -> Result<u32, NetError>;
        [16 handle async fn] send(Connection, bytes: Bytes, timeout: f64) -> Result<(), NetError> = tcp_send;
        [17 handle async fn] receive(Connection, limit: u32, timeout: f64) -> Result<Bytes, NetError> = tcp_receive;
        [18 own] drop(handle: u32) -> ();
        own {
            async fn connect(
                &mut self,
                host: Text,
                port: u16,
                timeout: f64,
            ) -> wasmtime::Result<Result<Resource<Connection>, NetError>> {
                if let Some(answer) = self.deck.import::<Result<u32, NetError>>(15, true, &(&host, port, timeout))? {
                    return Ok(answer.map(Resource::new_own));
                }
                let peer = format!("{host}:{port}");
                let answer = self.tcp_connect(host, port, timeout).await?;
                Ok(self.handed(true, peer, answer))
            }

            async fn drop(&mut self, connection: Resource<Connection>) -> wasmtime::Result<()> {
                self.let_go(18, connection)
            }
        }
    }
    impl wit::http::Host as "http" {
        [19 own] fetch(request: Request) -> Result<Response, HttpError>;
        own {
            async fn fetch(&mut self, request: Request) -> wasmtime::Result<Result<Response, HttpError>> {
                if let Some(answer) = self.deck.import(19, true, &on_tape(&request))? {
                    return Ok(answer);
                }
                let answer = State::fetch(self, request).await;
                self.deck.answered(true, &answer);
                Ok(answer)
            }
        }
    }
    impl wit::modbus::Host as "modbus" {}
    impl wit::modbus::HostUnit as "modbus.unit" {
        [20 own] open(bus: Text, unit: u8) -> Result<u32, ModbusError>;
        [21 handle async fn] read_coils(Unit, address: u16, count: u16) -> Result<Vec<bool>, ModbusError> = read_coils;
        [22 handle async fn] read_discrete_inputs(Unit, address: u16, count: u16) -> Result<Vec<bool>, ModbusError> = read_discrete_inputs;
        [23 handle async fn] read_holding_registers(Unit, address: u16, count: u16) -> Result<Vec<u16>, ModbusError> = read_holding_registers;
        [24 handle async fn] read_input_registers(Unit, address: u16, count: u16) -> Result<Vec<u16>, ModbusError> = read_input_registers;
        [25 handle async fn] write_coil(Unit, address: u16, value: bool) -> Result<(), ModbusError> = write_coil;
        [26 handle async fn] write_register(Unit, address: u16, value: u16) -> Result<(), ModbusError> = write_register;
        [27 handle async fn] write_coils(Unit, address: u16, values: Vec<bool>) -> Result<(), ModbusError> = write_coils;
        [28 handle async fn] write_registers(Unit, address: u16, values: Vec<u16>) -> Result<(), ModbusError> = write_registers;
        [29 handle fn] set_timeout(Unit, timeout: f64) -> Result<(), ModbusError> = set_unit_timeout;
        [30 handle fn] set_pause(Unit, pause: f64) -> Result<(), ModbusError> = set_unit_pause;
        [31 own] drop(handle: u32) -> ();
        own {
            fn open(&mut self, bus: Text, unit: u8) -> wasmtime::Result<Result<Resource<Unit>, ModbusError>> {
                if let Some(answer) = self.deck.import::<Result<u32, ModbusError>>(20, false, &(&bus, unit))? {
                    return Ok(answer.map(Resource::new_own));
                }
                let name = format!("{bus}/{unit}");
                let answer = self.open_unit(bus, unit)?;
                Ok(self.handed(false, name, answer))
            }

            async fn drop(&mut self, unit: Resource<Unit>) -> wasmtime::Result<()> {
                self.let_go(31, unit)
            }
        }
    }
    impl wit::serial::Host as "serial" {}
    impl wit::serial::HostPort as "serial.port" {
        [50 own] open(name: Text) -> Result<u32, SerialError>;
        [51 handle fn] settings(Port) -> Settings = port_settings;
        [52 handle async fn] write(Port, bytes: Bytes) -> Result<(), SerialError> = serial_write;
        [53 handle async fn] read(Port, limit: u32, timeout: f64) -> Result<Bytes, SerialError> = serial_read;
        [54 handle async fn] read_exact(Port, count: u32, timeout: f64) -> Result<Bytes, SerialError> = serial_read_exact;
        [55 handle async fn] read_until(Port, delimiter: Bytes, limit: u32, timeout: f64) -> Result<Bytes, SerialError> = serial_read_until;
        [56 handle async fn] read_frame(Port, silence: f64, limit: u32, timeout: f64) -> Result<Bytes, SerialError> = serial_read_frame;
        [57 handle async fn] discard(Port) -> Result<(), SerialError> = serial_discard;
        [58 handle fn] release(Port) -> () = serial_release;
        [59 own] drop(handle: u32) -> ();
        own {
            fn open(&mut self, name: Text) -> wasmtime::Result<Result<Resource<Port>, SerialError>> {
                self.opened(50, name, State::open_port)
            }

            async fn drop(&mut self, port: Resource<Port>) -> wasmtime::Result<()> {
                self.let_go(59, port)
            }
        }
    }
    impl wit::can::Host as "can" {}
    impl wit::can::HostChannel as "can.channel" {
        [74 own] open(name: Text) -> Result<u32, CanError>;
        [75 handle async fn] send(Channel, frame: Frame) -> Result<(), CanError> = send_frame;
        [76 own] monitor(channel: u32, ids: Vec<u32>) -> Result<u32, CanError>;
        [77 own] queue(channel: u32, ids: Vec<u32>, size: u32, overflow: Overflow) -> Result<u32, CanError>;
        [78 own] drop(handle: u32) -> ();
        own {
            fn open(&mut self, name: Text) -> wasmtime::Result<Result<Resource<Channel>, CanError>> {
                self.opened(74, name, State::open_channel)
            }

            fn monitor(
                &mut self,
                channel: Resource<Channel>,
                ids: Vec<u32>,
            ) -> wasmtime::Result<Result<Resource<Monitor>, CanError>> {
                if let Some(answer) = self.deck.import::<Result<u32, CanError>>(76, false, &(channel.rep(), &ids))? {
                    return Ok(answer.map(Resource::new_own));
                }
                let name = self.channel_name(&channel)?;
                let answer = State::monitor(self, &channel, ids)?;
                Ok(self.handed(false, name, answer))
            }

            fn queue(
                &mut self,
                channel: Resource<Channel>,
                ids: Vec<u32>,
                size: u32,
                overflow: Overflow,
            ) -> wasmtime::Result<Result<Resource<Queue>, CanError>> {
                let asked = (channel.rep(), &ids, size, overflow);
                if let Some(answer) = self.deck.import::<Result<u32, CanError>>(77, false, &asked)? {
                    return Ok(answer.map(Resource::new_own));
                }
                let name = self.channel_name(&channel)?;
                let answer = State::queue(self, &channel, (ids, size, overflow))?;
                Ok(self.handed(false, name, answer))
            }

            fn drop(&mut self, channel: Resource<Channel>) -> wasmtime::Result<()> {
                self.let_go(78, channel)
            }
        }
    }
    impl wit::can::HostMonitor as "can.monitor" {
        [79 handle fn] pop(Monitor) -> Vec<Frame> = latest_frames;
        [80 own] drop(handle: u32) -> ();
        own {
            fn drop(&mut self, monitor: Resource<Monitor>) -> wasmtime::Result<()> {
                self.let_go(80, monitor)
            }
        }
    }
    impl wit::can::HostQueue as "can.queue" {
        [81 handle fn] pop(Queue, limit: u32) -> Vec<Frame> = queued_frames;
        [82 handle fn] dropped(Queue) -> u64 = dropped_frames;
        [83 own] drop(handle: u32) -> ();
        own {
            fn drop(&mut self, queue: Resource<Queue>) -> wasmtime::Result<()> {
                self.let_go(83, queue)
            }
        }
    }
    impl wit::io::Host as "io" {}
    impl wit::io::HostOutput as "io.output" {
        [60 own] open(name: Text) -> Result<u32, IoError>;
        [61 handle async fn] get(Output) -> Result<bool, IoError> = output_state;
        [62 handle async fn] set(Output, on: bool) -> Result<(), IoError> = switch;
        [63 handle async fn] pulse(Output, duration: f64) -> Result<(), IoError> = pulse;
        [64 own] drop(handle: u32) -> ();
        own {
            fn open(&mut self, name: Text) -> wasmtime::Result<Result<Resource<Output>, IoError>> {
                self.opened(60, name, State::open_output)
            }

            async fn drop(&mut self, handle: Resource<Output>) -> wasmtime::Result<()> {
                self.let_go(64, handle)
            }
        }
    }
    impl wit::io::HostInput as "io.input" {
        [65 own] open(name: Text) -> Result<u32, IoError>;
        [66 handle async fn] get(Input) -> Result<bool, IoError> = input_state;
        [67 handle async fn] count(Input) -> Result<Counter, IoError> = pulses;
        [68 handle async fn] set_count(Input, count: u64) -> Result<(), IoError> = set_pulses;
        [69 handle async fn] set_debounce(Input, time: f64) -> Result<(), IoError> = set_debounce;
        [70 own] drop(handle: u32) -> ();
        own {
            fn open(&mut self, name: Text) -> wasmtime::Result<Result<Resource<Input>, IoError>> {
                self.opened(65, name, State::open_input)
            }

            async fn drop(&mut self, handle: Resource<Input>) -> wasmtime::Result<()> {
                self.let_go(70, handle)
            }
        }
    }
    impl wit::io::HostAnalog as "io.analog" {
        [71 own] open(name: Text) -> Result<u32, IoError>;
        [72 handle async fn] read(Analog) -> Result<f64, IoError> = analog;
        [73 own] drop(handle: u32) -> ();
        own {
            fn open(&mut self, name: Text) -> wasmtime::Result<Result<Resource<Analog>, IoError>> {
                self.opened(71, name, State::open_analog)
            }

            async fn drop(&mut self, handle: Resource<Analog>) -> wasmtime::Result<()> {
                self.let_go(73, handle)
            }
        }
    }
    impl wit::metadata::Host as "metadata" {
        [32 async fn] keys() -> Result<Vec<Text>, MetadataError> = metadata_keys;
        [33 async fn] get(keys: Vec<Text>) -> Result<Vec<Attribute>, MetadataError> = metadata;
        [34 async fn] replace(entries: Vec<Attribute>) -> Result<(), MetadataError> = replace_metadata;
        [35 async fn] merge(entries: Vec<Attribute>) -> Result<(), MetadataError> = merge_metadata;
        [36 async fn] delete(keys: Vec<Text>) -> Result<(), MetadataError> = delete_metadata;
    }
    impl wit::blobs::Host as "blobs" {
        [37 async fn] upload(name: Text, content_type: Text, bytes: Bytes) -> Result<Text, BlobError> = upload;
    }
    impl wit::budget::Host as "budget" {
        [39 fn] left() -> Remaining = budget_left;
    }
    // What is in the driver itself is on no tape.
    impl wit::files::Host as "files" {
        own {
            fn names(&mut self) -> wasmtime::Result<Vec<Text>> {
                Ok(self.files.names().map(str::to_owned).collect())
            }

            fn read(&mut self, name: Text) -> wasmtime::Result<Option<Bytes>> {
                Ok(self.files.get(&name).map(<[u8]>::to_vec))
            }
        }
    }
    impl wall_clock::Host as "wasi.wall-clock" {
        [40 own] now() -> (u64, u32);
        own {
            fn now(&mut self) -> wasmtime::Result<wall_clock::Datetime> {
                if let Some((seconds, nanoseconds)) = self.deck.import(40, false, &())? {
                    return Ok(wall_clock::Datetime { seconds, nanoseconds });
                }
                let now = wall_clock::Host::now(&mut WasiClocksView::clocks(self))?;
                self.deck.answered(false, &(now.seconds, now.nanoseconds));
                Ok(now)
            }

            // The same on every machine.
            fn resolution(&mut self) -> wasmtime::Result<wall_clock::Datetime> {
                Ok(wall_clock::Datetime { seconds: 0, nanoseconds: RESOLUTION })
            }
        }
    }
    impl monotonic_clock::Host as "wasi.monotonic-clock" {
        [41 own] now() -> u64;
        own {
            fn now(&mut self) -> wasmtime::Result<u64> {
                if let Some(now) = self.deck.import(41, false, &())? {
                    return Ok(now);
                }
                let now = monotonic_clock::Host::now(&mut WasiClocksView::clocks(self))?;
                self.deck.answered(false, &now);
                Ok(now)
            }

            fn resolution(&mut self) -> wasmtime::Result<u64> {
                Ok(RESOLUTION.into())
            }

            fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
                monotonic_clock::Host::subscribe_instant(&mut WasiClocksView::clocks(self), when)
            }

            fn subscribe_duration(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
                monotonic_clock::Host::subscribe_duration(&mut WasiClocksView::clocks(self), when)
            }
        }
    }
    impl poll::Host as "wasi.poll" {
        [42 own] poll(pollables: u32) -> Vec<u32>;
        own {
            async fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
                // Their handles depend on what else is open here.
                let number = u32::try_from(pollables.len()).unwrap_or(u32::MAX);
                if let Some(ready) = self.deck.import(42, true, &(number,))? {
                    return Ok(ready);
                }
                let ready = poll::Host::poll(self.ctx().table, pollables).await?;
                self.deck.answered(true, &ready);
                Ok(ready)
            }
        }
    }
    impl poll::HostPollable as "wasi.pollable" {
        [43 own] ready() -> bool;
        [44 own] block() -> ();
        own {
            async fn ready(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<bool> {
                if let Some(is_ready) = self.deck.import(43, false, &())? {
                    return Ok(is_ready);
                }
                let is_ready = poll::HostPollable::ready(self.ctx().table, pollable).await?;
                self.deck.answered(false, &is_ready);
                Ok(is_ready)
            }

            async fn block(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
                if self.deck.import::<()>(44, true, &())?.is_none() {
                    poll::HostPollable::block(self.ctx().table, pollable).await?;
                    self.deck.answered(true, &());
                }
                Ok(())
            }

            fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
                poll::HostPollable::drop(self.ctx().table, pollable)
            }
        }
    }
    impl random::Host as "wasi.random" {
        [45 own] get_random_bytes(length: u64) -> Bytes;
        [46 own] get_random_u64() -> u64;
        own {
            fn get_random_bytes(&mut self, length: u64) -> wasmtime::Result<Bytes> {
                self.chance(45, &(length,), |chance| random::Host::get_random_bytes(chance, length))
            }

            fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
                self.chance(46, &(), random::Host::get_random_u64)
            }
        }
    }
    impl insecure::Host as "wasi.insecure" {
        [47 own] get_insecure_random_bytes(length: u64) -> Bytes;
        [48 own] get_insecure_random_u64() -> u64;
        own {
            fn get_insecure_random_bytes(&mut self, length: u64) -> wasmtime::Result<Bytes> {
                self.chance(47, &(length,), |chance| insecure::Host::get_insecure_random_bytes(chance, length))
            }

            fn get_insecure_random_u64(&mut self) -> wasmtime::Result<u64> {
                self.chance(48, &(), insecure::Host::get_insecure_random_u64)
            }
        }
    }
    impl insecure_seed::Host as "wasi.insecure-seed" {
        [49 own] insecure_seed() -> (u64, u64);
        own {
            fn insecure_seed(&mut self) -> wasmtime::Result<(u64, u64)> {
                self.chance(49, &(), insecure_seed::Host::insecure_seed)
            }
        }
    }
}

// Types are shared, and ask nothing.
impl wit::types::Host for State {}

impl State {
    /// Tells the tape of what a driver has opened, and what it is called there.
    fn handed<T, E: Serialize>(
        &mut self,
        waits: bool,
        name: String,
        answer: Result<Resource<T>, E>,
    ) -> Result<Resource<T>, E> {
        if let Ok(handle) = &answer {
            self.deck.handle(handle.rep(), Some(name));
        }
        self.deck.answered(waits, &answer.as_ref().map(Resource::rep));
        answer
    }

    /// What a driver opens by its name.
    fn opened<T: 'static, E: Serialize + DeserializeOwned>(
        &mut self,
        number: u8,
        name: Text,
        open: impl FnOnce(&mut State, &str) -> wasmtime::Result<Result<Resource<T>, E>>,
    ) -> wasmtime::Result<Result<Resource<T>, E>> {
        if let Some(answer) = self.deck.import::<Result<u32, E>>(number, false, &(&name,))? {
            return Ok(answer.map(Resource::new_own));
        }
        let answer = open(self, &name)?;
        Ok(self.handed(false, name, answer))
    }

    /// Lets go of what a driver had opened.
    fn let_go<T: 'static>(&mut self, number: u8, handle: Resource<T>) -> wasmtime::Result<()> {
        if self.deck.import::<()>(number, false, &(handle.rep(),))?.is_none() {
            self.deck.handle(handle.rep(), None);
            self.table.delete(handle)?;
            self.deck.answered(false, &());
        }
        Ok(())
    }

    fn chance<T: Serialize + DeserializeOwned>(
        &mut self,
        number: u8,
        arguments: &impl Serialize,
        draw: impl FnOnce(&mut WasiRandomCtx) -> wasmtime::Result<T>,
    ) -> wasmtime::Result<T> {
        if let Some(drawn) = self.deck.import(number, false, arguments)? {
            return Ok(drawn);
        }
        let drawn = draw(self.wasi.random())?;
        self.deck.answered(false, &drawn);
        Ok(drawn)
    }
}

/// A request without what lets somebody in.
fn on_tape(request: &Request) -> (&str, &str, Vec<Header>, &[u8], Option<f64>) {
    const HIDDEN: [&str; 5] = ["authorization", "proxy-authorization", "cookie", "x-api-key", "x-auth-token"];
    let header = |header: &Header| {
        let is_hidden = HIDDEN.iter().any(|name| header.name.eq_ignore_ascii_case(name));
        let value = if is_hidden { "x".repeat(header.value.len()) } else { header.value.clone() };
        Header { name: header.name.clone(), value }
    };
    (&request.method, &request.url, request.headers.iter().map(header).collect(), &request.body, request.timeout)
}

/// Puts the tape between drivers and those parts of WASI that tell them something.
pub(super) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    wall_clock::add_to_linker::<State, HasSelf<State>>(linker, |state| state)?;
    monotonic_clock::add_to_linker::<State, HasSelf<State>>(linker, |state| state)?;
    poll::add_to_linker::<State, HasSelf<State>>(linker, |state| state)?;
    random::add_to_linker::<State, HasSelf<State>>(linker, |state| state)?;
    insecure::add_to_linker::<State, HasSelf<State>>(linker, |state| state)?;
    insecure_seed::add_to_linker::<State, HasSelf<State>>(linker, |state| state)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// An export by its number.
pub fn export(number: u8) -> Option<&'static Crossing> {
    EXPORTS.iter().find(|crossing| crossing.number == number)
}

/// An import by its number.
pub fn import(number: u8) -> Option<&'static Crossing> {
    IMPORTS.iter().find(|crossing| crossing.number == number)
}
