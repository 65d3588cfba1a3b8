//! Runs a driver again on a tape: each call and each answer comes from there,
//! and all that it does has to be what is there, bit for bit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::boundary::{self, Export};
use super::{CallError, Capabilities, DeviceLog, Driver, FirmwareStep, Instance, Limits};
use crate::config::Rate;
use crate::tape::{Deck, Difference, Event, Kind, Player, Side, Tape};

/// A tape may say anything.
const MOST_MEMORY: u64 = 1 << 30;

/// What a replay has found.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Calls that were the same.
    pub calls: u64,
    /// When the last of them began, since the begin of the life.
    pub to: Duration,
    /// How long it took here.
    pub took: Duration,
    /// The first difference.
    pub difference: Option<Difference>,
    /// How the last call ended, where the driver died of it.
    pub death: Option<String>,
    /// What the driver would hand over at the end of the replay, if it says.
    pub state: Option<Vec<u8>>,
    /// Bytes of its memory then.
    pub memory: usize,
}

/// Plays a tape that begins with the life of the driver, up to a time in it.
pub async fn replay(driver: &Driver, tape: &Tape, until: Option<Duration>) -> Result<Replay, String> {
    if !tape.header.is_whole {
        return Err("the tape has lost the begin of the driver's life, from which it would have to be run again".into());
    }
    if tape.header.driver.digest != driver.digest.to_string() {
        let on_tape = &tape.header.driver;
        return Err(format!(
            "the tape is of {} {} ({:.12}), and this is {driver:?}",
            on_tape.name, on_tape.version, on_tape.digest
        ));
    }
    let began = Instant::now();
    // All answers are on the tape.
    let capabilities = Capabilities::nothing(&tape.header.device);
    let limits = limits(tape);
    let log = DeviceLog::silent(&capabilities, driver.manifest.label());
    let deck = Deck::Playing(Box::new(Player::new(tape.chunks.clone())));
    let instance = driver.instantiate_with(&capabilities, Arc::new(log), limits, deck).await;
    let mut replay = Replay {
        calls: 0,
        to: Duration::ZERO,
        took: Duration::ZERO,
        difference: None,
        death: None,
        state: None,
        memory: 0,
    };
    let mut instance = match instance {
        Ok(instance) => instance,
        // On each tape it has begun.
        Err(error) => return Err(format!("the driver does not begin as on the tape: {error}")),
    };
    while replay.death.is_none() {
        let Some((export, arguments)) = next(&instance, until) else { break };
        let result = call(&mut instance, export, &arguments).await;
        match result {
            Err(problem) => return Err(problem),
            Ok(Ok(())) => {}
            Ok(Err(error)) => replay.death = Some(error.to_string()),
        }
        if instance.deck().player().is_some_and(|player| player.difference().is_some()) {
            break;
        }
    }
    if let Some(player) = instance.deck().player() {
        replay.calls = player.calls();
        replay.to = player.at();
        replay.difference = player.difference().cloned();
    }
    replay.took = began.elapsed();
    replay.memory = instance.memory();
    if replay.death.is_none() && replay.difference.is_none() {
        *instance.deck() = Deck::Off;
        replay.state = instance.snapshot().await.ok().flatten();
    }
    Ok(replay)
}

/// The next call on the tape, if it is not too late.
fn next(instance: &Instance, until: Option<Duration>) -> Option<(Export, Vec<u8>)> {
    let moment = instance.player()?.peek()?;
    if moment.event.kind != Kind::Call || until.is_some_and(|until| moment.at > until) {
        return None;
    }
    let export = Export::ALL.iter().find(|export| **export as u8 == moment.event.number)?;
    Some((*export, moment.event.bytes.to_vec()))
}

/// Makes a call of a tape. The outer error is damage of the tape.
async fn call(instance: &mut Instance, export: Export, arguments: &[u8]) -> Result<Result<(), CallError>, String> {
    fn read<T: DeserializeOwned>(export: Export, bytes: &[u8]) -> Result<T, String> {
        postcard::from_bytes(bytes)
            .map_err(|error| format!("the tape is damaged in a call of {}: {error}", export.name()))
    }
    Ok(match export {
        Export::Instantiation => return Err("the tape is damaged: it has two begins".into()),
        Export::Start => instance.start(read(export, arguments)?).await.map(drop),
        Export::OnTimer => instance.on_timer(read(export, arguments)?).await.map(drop),
        Export::HandleCommand => instance.handle_command(read(export, arguments)?, None).await.map(drop),
        Export::Configure => instance.configure(&read::<String>(export, arguments)?).await.map(drop),
        Export::Stop => instance.stop().await,
        Export::Snapshot => instance.snapshot().await.map(drop),
        Export::Restore => instance.restore(read(export, arguments)?).await.map(drop),
        Export::FirmwareVersion => instance.firmware_version().await.map(drop),
        Export::FirmwareBegin => {
            let (version, specification, size) = read(export, arguments)?;
            instance.update_firmware(FirmwareStep::Begin { version, specification, size }).await.map(drop)
        }
        Export::FirmwareWrite => {
            instance.update_firmware(FirmwareStep::Write(read(export, arguments)?)).await.map(drop)
        }
        Export::FirmwareFinish => instance.update_firmware(FirmwareStep::Finish).await.map(drop),
        Export::ScriptProblems => instance.script_problems().await.map(drop),
    })
}

/// The limits of the tape, with more time than a driver had that came to its end.
fn limits(tape: &Tape) -> Limits {
    let on_tape = tape.header.limits;
    let endless = Rate { per_second: 1e9, burst: 1e9 };
    Limits {
        memory: usize::try_from(on_tape.memory.min(MOST_MEMORY)).unwrap_or(usize::MAX),
        cpu: Duration::from_millis(on_tape.cpu_ms.clamp(1000, 600_000)) * 2,
        call: Duration::from_secs(3600),
        telemetry: endless,
        logs: endless,
        storage: 0,
    }
}

/// An event in words: what was called or asked, or what came of it.
pub fn describe(event: Event<'_>, number: u8) -> String {
    let crossing = match event.kind {
        Kind::Call | Kind::Return => boundary::export(number),
        Kind::Import | Kind::Answer => boundary::import(number),
    };
    let Some(crossing) = crossing else {
        return format!("{} of a later version ({} bytes)", number, event.bytes.len());
    };
    match event.kind {
        Kind::Call => format!("call {}{}", crossing.name, (crossing.show_arguments)(event.bytes)),
        Kind::Import => format!("{}{}", crossing.name, (crossing.show_arguments)(event.bytes)),
        Kind::Return => format!("{} returns {}", crossing.name, (crossing.show_answer)(event.bytes)),
        Kind::Answer => format!("-> {}", (crossing.show_answer)(event.bytes)),
    }
}

/// One side of a difference in words.
pub fn describe_side(side: &Side) -> String {
    let event = Event { kind: side.kind, number: side.number, time: Duration::ZERO, bytes: &side.bytes };
    describe(event, side.number)
}
