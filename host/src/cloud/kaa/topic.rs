//! Topics of Kaa's protocol 1/KP, read and written.
//!
//! `kp1/<app version>/<extension>/<token>/<path…>[/<request id>][/status|/error]`
//!
//! A last level (before `status` or `error`) that is a number is the request
//! id, never a part of the path. Pure.

use std::fmt;

/// The number of a request; unique among those without an answer.
pub type RequestId = u32;

/// Ids are signed 32-bit numbers in the cloud.
pub const LAST_REQUEST: RequestId = i32::MAX.unsigned_abs();

/// A topic, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic<'a> {
    /// The application version.
    pub app_version: &'a str,
    /// The extension's name, such as `dcx`.
    pub extension: &'a str,
    /// The endpoint's token. A secret: never to be logged.
    pub token: &'a str,
    /// The resource, such as `command/reboot`; without slashes at its ends.
    pub path: &'a str,
    /// The request that it makes or answers.
    pub request: Option<RequestId>,
    /// Whether it answers, and how; none on a request.
    pub answer: Option<Answer>,
}

/// How the cloud answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// `/status`: done, or a push.
    Status,
    /// `/error`.
    Error,
}

impl<'a> Topic<'a> {
    /// Reads a topic. The error says what was expected and repeats nothing of
    /// the topic: it may hold a token.
    pub fn parse(topic: &'a str) -> Result<Topic<'a>, &'static str> {
        const SHAPE: &str = "expected kp1/<app version>/<extension>/<token>/<path>[/<request id>]/status or /error";
        let rest = topic.strip_prefix("kp1/").ok_or(SHAPE)?;
        let mut levels = rest.splitn(4, '/');
        let (Some(app_version), Some(extension), Some(token), Some(path)) =
            (levels.next(), levels.next(), levels.next(), levels.next())
        else {
            return Err(SHAPE);
        };
        let (path, answer) = match path.rsplit_once('/') {
            Some((path, "status")) => (path, Some(Answer::Status)),
            Some((path, "error")) => (path, Some(Answer::Error)),
            // `tsx` has no path of its own, so nothing stands before the end.
            None if path == "status" => ("", Some(Answer::Status)),
            None if path == "error" => ("", Some(Answer::Error)),
            _ => (path, None),
        };
        let (before, last) = path.rsplit_once('/').unwrap_or(("", path));
        let (path, request) = match request_id(last) {
            Some(request) => (before, Some(request)),
            None => (path, None),
        };
        let is_level = |level: &str| !level.is_empty();
        let whole = [app_version, extension, token].into_iter().all(is_level)
            && (path.is_empty() || path.split('/').all(is_level));
        if !whole {
            return Err(SHAPE);
        }
        Ok(Topic { app_version, extension, token, path, request, answer })
    }
}

/// A level that is a number in the range of request ids.
fn request_id(level: &str) -> Option<RequestId> {
    let digits = !level.is_empty() && level.bytes().all(|byte| byte.is_ascii_digit());
    level.parse().ok().filter(|id| digits && *id <= LAST_REQUEST)
}

impl fmt::Display for Topic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kp1/{}/{}/{}", self.app_version, self.extension, self.token)?;
        if !self.path.is_empty() {
            write!(f, "/{}", self.path)?;
        }
        if let Some(request) = self.request {
            write!(f, "/{request}")?;
        }
        match self.answer {
            Some(Answer::Status) => f.write_str("/status"),
            Some(Answer::Error) => f.write_str("/error"),
            None => Ok(()),
        }
    }
}
