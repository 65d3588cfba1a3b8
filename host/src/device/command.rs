//! Carrying out commands: checked, once, always answered.

use serde_json::{Map, Value as Json};

use super::Device;
use crate::journal::Terms;
use crate::manifest::ArgumentError;
use crate::message::{CommandError, CommandRequest, CommandResult, Severity, size_of_attribute};
use crate::sandbox::CallError;
use crate::sandbox::contract::exports::sandgate::driver::device_driver::Command;

impl Device {
    /// Carries out a command, unless it must not run any more, and answers it.
    pub(super) async fn command(&mut self, request: CommandRequest) -> CommandResult {
        let manifest = &self.driver.manifest;
        let result = match manifest.check_command(&request.name, request.arguments.clone()) {
            Err(error @ ArgumentError::UnknownCommand(..)) => Err(CommandError::Unsupported(error.to_string())),
            Err(error) => Err(CommandError::InvalidArgument(error.to_string())),
            Ok(arguments) => {
                let declared = manifest.driver.commands.get(&request.name).copied().unwrap_or_default();
                let terms = Terms {
                    deadline: declared.deadline.map(|deadline| deadline.0),
                    is_idempotent: declared.idempotent,
                };
                match self.journal.begin(&request, &self.spec.id, terms).await {
                    Ok(()) => self.carry_out(&request, arguments).await,
                    Err(error) => Err(error),
                }
            }
        };
        if let Err(error) = &result {
            let text = error.text();
            self.life.log.write(Severity::Warning, &format!("command {}: {text}", request.name));
        }
        self.answer(&request, result.clone());
        result
    }

    /// Answers a command.
    pub(super) fn answer(&self, request: &CommandRequest, result: CommandResult) {
        self.journal.finish(&self.spec.capabilities.outlet, request.session.as_ref(), &request.id, result);
    }

    async fn carry_out(&mut self, request: &CommandRequest, arguments: Map<String, Json>) -> CommandResult {
        let Some(instance) = self.life.instance.as_mut() else {
            let problem = self.problem.as_deref().unwrap_or("unknown");
            return Err(CommandError::Failed(format!("the driver is not running: {problem}")));
        };
        let statistics = &self.spec.capabilities.statistics;
        statistics.commands.count();
        let command = Command {
            id: request.id.clone(),
            name: request.name.clone(),
            arguments: self.driver.manifest.typed_arguments(&request.name, &arguments),
            raw: Json::Object(arguments).to_string(),
        };
        match instance.handle_command(command, request.session.clone()).await {
            // A refused command is no fault of the driver.
            Ok(result) => within_size(result),
            Err(error) => {
                let text = format!("the driver {error}; the state of the device is unknown");
                self.crashed(&error).await;
                match error {
                    CallError::Timeout { .. } => Err(CommandError::TimedOut(text)),
                    _ => Err(CommandError::Failed(text)),
                }
            }
        }
    }
}

/// A result is some numbers and texts; it is kept in memory for a while, too.
fn within_size(result: CommandResult) -> CommandResult {
    const MAX_RESULT: usize = 64 << 10;
    let size = match &result {
        Ok(attributes) => attributes.iter().map(size_of_attribute).sum(),
        Err(error) => error.text().len(),
    };
    if size <= MAX_RESULT {
        return result;
    }
    Err(CommandError::Failed(format!("the driver returned {size} bytes; expected at most {MAX_RESULT}")))
}
