//! Answering the admin API and carrying out the gateway's own commands.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::control::ControlError;
use super::swap::{Asker, Gating, SwapOrder, SwapReply};
use super::{Report, Request, Supervisor};
use crate::device::{DeviceHandle, Input};
use crate::gateway;
use crate::journal::Terms;
use crate::manifest::ArgumentError;
use crate::message::{Attribute, CommandError, CommandRequest, CommandResult, DeviceId, Value};
use crate::receipt::{Outcome, Receipt};
use crate::registry::Origin;
use crate::router::GATEWAY;
use crate::text;

/// Who asks when a cloud does.
const CLOUD: &str = "cloud";
/// Commands for the gateway itself that may be under way; more are answered with "busy".
pub(super) const COMMANDS: usize = 64;

impl Supervisor {
    /// Answers a request. A reply that nobody waits for any more is no error.
    pub(super) fn answer(&mut self, request: Request) {
        match request {
            Request::Ping(reply) => drop(reply.send(())),
            Request::Status(reply) => drop(reply.send(self.status())),
            Request::Swap { device, reply, .. } if self.is_starting(&device) => {
                drop(reply.send(Err(starting(&device))));
            }
            Request::Swap { device, file, asked_by, accepts_difference, reply } => match self.running(&device) {
                Err(problem) => {
                    let problem = match (self.devices.get(&device), &file) {
                        (Some(entry), None) => {
                            let config = entry.config.clone();
                            self.start_device(&device, &config);
                            ControlError::Refused(format!("{problem}; starting its configured driver"))
                        }
                        _ => problem,
                    };
                    drop(reply.send(Err(problem)));
                }
                Ok(_) => {
                    let file = file.or_else(|| {
                        let entry = self.devices.get(&device)?;
                        Some(self.config.driver_path(&entry.config))
                    });
                    let origin = Origin::File(file.unwrap_or_default());
                    let asked_by = if asked_by == CLOUD { Asker::Cloud } else { Asker::Person(asked_by) };
                    let gating = if accepts_difference { Gating::Accepts } else { Gating::Usual };
                    self.swap(&device, SwapOrder { origin, asked_by, gating }, Some(reply));
                }
            },
            Request::RollBack { device, reply, .. } if self.is_starting(&device) => {
                drop(reply.send(Err(starting(&device))));
            }
            Request::RollBack { device, to: None, asked_by, reply } => self.roll_back(&device, asked_by, reply),
            Request::RollBack { device, to: Some(to), asked_by, reply } => {
                self.roll_back_to(&device, to, asked_by, reply);
            }
            Request::Restart { device, reply } => match self.devices.get(&device) {
                None => drop(reply.send(Err(self.unknown(&device)))),
                Some(entry) => match entry.handle.clone() {
                    Some(handle) => {
                        // What is configured now, also if the driver refused to take it while it ran.
                        let configuration = self.configuration_now(&device);
                        tokio::spawn(async move {
                            let done = handle.ask(|reply| Input::Restart(configuration, reply)).await;
                            let _ = reply.send(done.ok_or(ControlError::DeviceStopped));
                        });
                    }
                    None => {
                        let config = entry.config.clone();
                        self.start_device(&device, &config);
                        let _ = reply.send(Ok(()));
                    }
                },
            },
            Request::Command { device, name, arguments, reply } => match self.running(&device) {
                Err(problem) => drop(reply.send(Err(problem))),
                Ok(handle) => {
                    let id = format!("local-{:016x}", fastrand::u64(..));
                    let (sender, result) = oneshot::channel();
                    let request = CommandRequest { id, session: None, name, arguments };
                    let taken = match handle.is_alive() {
                        true => handle.command(request, Some(sender)),
                        false => {
                            self.late_command(&device, (request, Some(sender)));
                            Ok(())
                        }
                    };
                    match taken {
                        Err(error) => drop(reply.send(Ok(Err(error)))),
                        Ok(()) => {
                            tokio::spawn(async move {
                                let result = result.await.map_err(|_| ControlError::DeviceStopped);
                                let _ = reply.send(result);
                            });
                        }
                    }
                }
            },
            Request::Tape { device, reply } => match self.running(&device).cloned() {
                Err(problem) => drop(reply.send(Err(problem))),
                Ok(handle) => {
                    let none = "nothing is recorded of it: `tape = false`, or `tapes.memory` is too small for so many devices; `sandgate record` records for a time";
                    tokio::spawn(async move {
                        let tape = handle.ask(Input::Tape).await;
                        let tape = tape.ok_or(ControlError::DeviceStopped);
                        let _ = reply.send(tape.and_then(|tape| tape.ok_or(ControlError::NoTape(none.into()))));
                    });
                }
            },
            Request::Record { device, recording, reply } => match self.running(&device).cloned() {
                Err(problem) => drop(reply.send(Err(problem))),
                Ok(handle) => {
                    tokio::spawn(async move {
                        let begun = handle.ask(|reply| Input::Record(recording, reply)).await;
                        let begun = begun.ok_or(ControlError::DeviceStopped);
                        let _ = reply.send(begun.and_then(|begun| begun.map_err(ControlError::NoTape)));
                    });
                }
            },
            Request::Stop(reply) => drop(reply.send(())),
        }
    }

    /// Goes back to a kept version of the running driver.
    fn roll_back_to(&mut self, device: &str, to: String, asked_by: String, reply: SwapReply) {
        let driver = match self.running(device) {
            Err(problem) => return drop(reply.send(Err(problem))),
            Ok(handle) => handle.status.borrow().driver.manifest.driver.name.clone(),
        };
        let (registry, report, device) = (Arc::clone(&self.registry), self.report.clone(), device.to_owned());
        let asked_by = Asker::Person(format!("{asked_by} (rollback)"));
        // A whole digest says all.
        if to.len() == 64 {
            return self.swap(
                &device,
                SwapOrder { origin: Origin::Copy(to), asked_by, gating: Gating::Skips },
                Some(reply),
            );
        }
        tokio::spawn(async move {
            let kept = registry.kept(&driver).await;
            match kept.iter().find(|kept| kept.is(&to)) {
                Some(kept) => {
                    let order =
                        SwapOrder { origin: Origin::Copy(kept.digest.clone()), asked_by, gating: Gating::Skips };
                    // The supervisor may be gone at the end of the program, and with it who asked.
                    let _ = report.send(Report::Order { device, order, reply }).await;
                }
                None => {
                    let names = text::list(kept.iter().map(ToString::to_string));
                    let text = format!("no version {to:?} of {driver} is kept; kept are {names}");
                    let _ = reply.send(Err(ControlError::UnknownVersion(text)));
                }
            }
        });
    }

    fn roll_back(&mut self, device: &str, asked_by: String, reply: SwapReply) {
        let handle = match self.running(device) {
            Err(problem) => return drop(reply.send(Err(problem))),
            Ok(handle) => handle.clone(),
        };
        let current = handle.status.borrow().driver.digest.to_string();
        // The newest accepted swap to what runs now tells what ran before.
        let before = self.receipts.all().into_iter().rev().find(|receipt| {
            let new = receipt.new.as_ref().map(|new| new.digest.as_str());
            receipt.device == device
                && receipt.outcome == Outcome::Accepted
                && new == Some(&current)
                && receipt.old.digest != current
        });
        if handle.status.borrow().watching {
            tokio::spawn(async move {
                let receipt = handle.ask(|reply| Input::RollBack(asked_by, reply)).await.flatten();
                let _ = reply.send(receipt.ok_or(ControlError::NoDriverBefore));
            });
            return;
        }
        match before {
            Some(receipt) => {
                let asked_by = Asker::Person(format!("{asked_by} (rollback)"));
                let order = SwapOrder { origin: Origin::Copy(receipt.old.digest), asked_by, gating: Gating::Skips };
                self.swap(device, order, Some(reply));
            }
            None => drop(reply.send(Err(ControlError::NoDriverBefore))),
        }
    }

    /// Whether a running device is about to be replaced by a fresh start.
    fn is_starting(&self, device: &str) -> bool {
        self.devices.get(device).is_some_and(|entry| entry.work.is_start() && entry.handle.is_some())
    }

    /// The handle of a device, or why there is none.
    fn running(&self, device: &str) -> Result<&DeviceHandle, ControlError> {
        let entry = self.devices.get(device).ok_or_else(|| self.unknown(device))?;
        entry.handle.as_ref().ok_or_else(|| ControlError::NotRunning {
            device: device.to_owned(),
            problem: entry.problem.clone().unwrap_or_else(|| "its driver is still being loaded".into()),
        })
    }

    fn unknown(&self, device: &str) -> ControlError {
        let device = text::cut(device, 100);
        ControlError::UnknownDevice(match self.devices.is_empty() {
            true => format!("no device {device:?}: none is configured"),
            false => format!("no device {device:?}; {}", text::instead(device, self.devices.keys())),
        })
    }

    /// Notes that a command for the gateway itself is started, and carries it out then.
    pub(super) fn gateway_command(&mut self, request: CommandRequest) {
        let arguments = self.manifest.check_command(&request.name, request.arguments.clone());
        let respond = self.gateway_responder(&request);
        if let Err(error) = arguments {
            let error = match error {
                ArgumentError::UnknownCommand(..) => CommandError::Unsupported(error.to_string()),
                ArgumentError::Invalid(_) => CommandError::InvalidArgument(error.to_string()),
            };
            return respond(Err(error));
        }
        let Ok(room) = Arc::clone(&self.commands).try_acquire_owned() else {
            return respond(Err(CommandError::Busy(format!("the gateway has {COMMANDS} commands under way"))));
        };
        let (journal, report) = (Arc::clone(&self.journal), self.report.clone());
        tokio::spawn(async move {
            match journal.begin(&request, &DeviceId::new(GATEWAY), Terms::default()).await {
                // Without a supervisor the gateway is stopping, and the next start answers.
                Ok(()) => drop(report.send(Report::Begun(request, room)).await),
                Err(error) => respond(Err(error)),
            }
        });
    }

    /// Answers a command for the gateway itself.
    fn gateway_responder(&self, request: &CommandRequest) -> impl FnOnce(CommandResult) + Send + 'static {
        let (session, id) = (request.session.clone(), request.id.clone());
        let (journal, outlet) = (Arc::clone(&self.journal), self.outlet(GATEWAY, session.as_ref()));
        move |result| journal.finish(&outlet, session.as_ref(), &id, result)
    }

    /// Carries out a command for the gateway itself.
    pub(super) fn carry_out_begun(&mut self, request: CommandRequest, room: OwnedSemaphorePermit) {
        let respond = self.gateway_responder(&request);
        let respond = move |result| {
            respond(result);
            drop(room);
        };
        let arguments = request.arguments;
        let device = arguments.get("device").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        match request.name.as_str() {
            "restart_device" | "swap_driver" if !self.devices.contains_key(&device) => {
                respond(Err(CommandError::InvalidArgument(self.unknown(&device).to_string())));
            }
            "list_devices" => respond(Ok(gateway::list(&self.status()))),
            "restart_device" => {
                let (reply, done) = oneshot::channel();
                self.answer(Request::Restart { device, reply });
                tokio::spawn(async move { respond(outcome(done.await, |()| Ok(Vec::new()))) });
            }
            _ => {
                let (reply, done) = oneshot::channel();
                self.answer(Request::Swap {
                    device,
                    file: None,
                    asked_by: CLOUD.into(),
                    accepts_difference: false,
                    reply,
                });
                let receipt = |receipt: Receipt| match receipt.outcome {
                    Outcome::Accepted => {
                        Ok(vec![Attribute { name: "receipt".into(), value: Value::Text(receipt.to_string()) }])
                    }
                    Outcome::Rejected(_) | Outcome::RolledBack(_) => Err(receipt.to_string()),
                };
                tokio::spawn(async move { respond(outcome(done.await, receipt)) });
            }
        }
    }
}

fn starting(device: &str) -> ControlError {
    ControlError::Starting(device.to_owned())
}

fn outcome<T>(
    result: Result<Result<T, ControlError>, oneshot::error::RecvError>,
    describe: impl FnOnce(T) -> Result<Vec<Attribute>, String>,
) -> CommandResult {
    match result.map(|result| result.map_err(|error| error.to_string()).and_then(describe)) {
        Ok(Ok(attributes)) => Ok(attributes),
        Ok(Err(problem)) => Err(CommandError::Failed(problem)),
        Err(_) => Err(CommandError::Failed("the gateway is stopping".into())),
    }
}
