//! What a device answers, and the many ways in which it says no. Pure.

use sandgate_driver::CommandError;
use sandgate_driver::http::HttpError;
use serde_json::Value as Json;

/// The fields of an answer.
pub type Fields = serde_json::Map<String, Json>;

/// Why there is no answer to work with.
#[derive(Debug, Clone, PartialEq)]
pub enum Failure {
    /// The request did not get through.
    Http(HttpError),
    /// The device wants other credentials.
    Unauthorized,
    /// The device understood and refuses; the text says how.
    Refused(String),
    /// Something answered, but not as Tasmota does.
    Unexpected(String),
}

impl Failure {
    /// The alert that fits.
    pub fn alert(&self) -> &'static str {
        match self {
            Failure::Unauthorized => "unauthorized",
            _ => "communication_failed",
        }
    }

    /// Says what went wrong, lower case and without full stop.
    pub fn describe(&self) -> String {
        match self {
            Failure::Http(HttpError::TimedOut) => "the device does not answer".into(),
            Failure::Http(HttpError::InvalidRequest(text)) => format!("invalid request: {text}"),
            Failure::Http(HttpError::TooLarge(most)) => format!("the answer is larger than {most} bytes"),
            Failure::Http(HttpError::NotGranted(text) | HttpError::Failed(text)) => text.clone(),
            Failure::Unauthorized => "the device refuses user or password".into(),
            Failure::Refused(text) | Failure::Unexpected(text) => text.clone(),
        }
    }
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        Failure::Http(error)
    }
}

impl From<Failure> for CommandError {
    fn from(failure: Failure) -> Self {
        let text = failure.describe();
        match failure {
            Failure::Http(HttpError::TimedOut | HttpError::Failed(_)) => CommandError::DeviceUnreachable(text),
            _ => CommandError::Failed(text),
        }
    }
}

/// Takes the fields out of an answer.
///
/// Firmware up to 8.2 answers wrong credentials with status 200, and the text
/// of a `WARNING` follows the language of the build, so its key decides.
pub fn fields(status: u16, body: &[u8]) -> Result<Fields, Failure> {
    let json = serde_json::from_slice(body);
    if let Ok(Json::Object(fields)) = &json
        && let Some(warning) = fields.get("WARNING")
    {
        return Err(of_warning(warning));
    }
    match status {
        200..=299 => {}
        401 | 403 => return Err(Failure::Unauthorized),
        _ => return Err(Failure::Unexpected(format!("expected HTTP status 200, found {status}"))),
    }
    let Ok(Json::Object(fields)) = json else {
        let hint = if body.is_empty() { "nothing" } else { "something else; is its web server in admin mode?" };
        return Err(Failure::Unexpected(format!("expected a JSON object, found {hint}")));
    };
    match fields.get("Command").and_then(Json::as_str) {
        Some("Unknown") => Err(Failure::Refused("the device does not know the command".into())),
        Some("Error") => Err(Failure::Refused("the device refuses the command".into())),
        _ => Ok(fields),
    }
}

/// The names of commands and parameters in a warning are not translated.
fn of_warning(warning: &Json) -> Failure {
    const SHOWN: usize = 120;
    let text: String = warning.as_str().unwrap_or_default().chars().take(SHOWN).collect();
    let lower = text.to_lowercase();
    let is_other = lower.contains("cmnd=") || lower.contains("weblog");
    if is_other { Failure::Refused(format!("the device warns: {text}")) } else { Failure::Unauthorized }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_say_no_is_understood() {
        let refused = |text: &str| Failure::Refused(text.to_owned());
        let need = r#"{"WARNING":"Need user=<username>&password=<password>"}"#;
        for (status, body, expected) in [
            (401, need, Failure::Unauthorized),
            (200, need, Failure::Unauthorized),
            (200, r#"{"WARNING":"user=<Benutzer>&password=<Passwort> benötigt"}"#, Failure::Unauthorized),
            (401, "", Failure::Unauthorized),
            (200, r#"{"WARNING":"Enter command cmnd="}"#, refused("the device warns: Enter command cmnd=")),
            (200, r#"{"Command":"Unknown"}"#, refused("the device does not know the command")),
            (200, r#"{"Command":"Error"}"#, refused("the device refuses the command")),
            (404, "File Not Found", Failure::Unexpected("expected HTTP status 200, found 404".into())),
            (200, "", Failure::Unexpected("expected a JSON object, found nothing".into())),
        ] {
            assert_eq!(fields(status, body.as_bytes()), Err(expected), "{status} {body}");
        }
        for body in ["<html>", "[1]", "\"ON\"", "{"] {
            assert!(matches!(fields(200, body.as_bytes()), Err(Failure::Unexpected(_))), "{body}");
        }
    }

    #[test]
    fn extra_fields_are_kept_and_do_no_harm() {
        let found = fields(200, br#"{"POWER":"ON","Time":"2026-01-01T00:00:00","Command":7}"#);
        assert_eq!(found.map(|fields| fields.len()), Ok(3));
    }

    #[test]
    fn commands_tell_the_unreachable_from_the_unwilling() {
        let silent = CommandError::from(Failure::Http(HttpError::TimedOut));
        assert_eq!(silent, CommandError::DeviceUnreachable("the device does not answer".into()));
        let locked = CommandError::from(Failure::Unauthorized);
        assert_eq!(locked, CommandError::Failed("the device refuses user or password".into()));
    }
}
