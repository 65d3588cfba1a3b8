//! Carrying out commands: checked, at most once, always answered.

use serde_json::{Map, Value as Json};

use super::Device;
use crate::journal::{Seen, interrupted};
use crate::manifest::ArgumentError;
use crate::message::{CommandError, CommandRequest, CommandResult, Severity, Uplink, now, size_of_attribute};
use crate::sandbox::CallError;
use crate::sandbox::contract::exports::sandgate::driver::device_driver::Command;

impl Device {
    /// Carries out a command once; none when it is running already.
    pub(super) async fn command(&mut self, request: CommandRequest) -> Option<CommandResult> {
        let id = request.id.clone();
        let result = match self.driver.manifest.check_command(&request.name, request.arguments.clone()) {
            Err(error @ ArgumentError::UnknownCommand(..)) => Err(CommandError::Unsupported(error.to_string())),
            Err(error) => Err(CommandError::InvalidArgument(error.to_string())),
            Ok(arguments) => match self.journal.begin(&request, &self.spec.id, now()) {
                Err(error) => Err(CommandError::Failed(format!("{error:#}"))),
                Ok(Seen::Running) => return None,
                Ok(Seen::Answered(Some(result))) => result,
                Ok(Seen::Interrupted) => Err(interrupted()),
                // Answered by an older version of this program: the cloud has the answer.
                Ok(Seen::Answered(None)) => return None,
                Ok(Seen::Never) => {
                    let result = self.carry_out(&request, arguments).await;
                    self.journal.end(&request, &self.spec.id, now(), &result);
                    result
                }
            },
        };
        if let Err(error) = &result {
            let text = error.text();
            self.life.log.write(Severity::Warning, &format!("command {}: {text}", request.name));
        }
        let uplink = Uplink::CommandResult { command: &id, result: &result };
        self.spec.capabilities.outlet.answer(request.session.as_ref(), &uplink);
        Some(result)
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
