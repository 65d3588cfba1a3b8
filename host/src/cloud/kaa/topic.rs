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

/// Where one of our own messages goes, before it has a number: nothing at its
/// end has a meaning of its own, whatever a command or a metric is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource<'a> {
    /// `<app version>/<token>` is the channel.
    pub app_version: &'a str,
    /// The extension's name.
    pub extension: &'a str,
    /// The endpoint's token.
    pub token: &'a str,
    /// Such as `result/status`, for a command of the name `status`.
    pub path: &'a str,
}

impl<'a> Resource<'a> {
    /// Takes a topic apart.
    pub fn parse(topic: &'a str) -> Option<Resource<'a>> {
        let mut levels = topic.strip_prefix("kp1/")?.splitn(4, '/');
        let (app_version, extension, token) = (levels.next()?, levels.next()?, levels.next()?);
        Some(Resource { app_version, extension, token, path: levels.next()? })
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use sandgate_standin::kaa::topic as standin;

    fn level() -> impl Strategy<Value = String> {
        "[a-zA-Z0-9_-]{0,12}[a-zA-Z_-]"
    }

    fn path() -> impl Strategy<Value = String> {
        let level = level().prop_filter("an answer's own word", |level| level != "status" && level != "error");
        prop::collection::vec(level, 1..4).prop_map(|levels| levels.join("/"))
    }

    /// Names that mean something at the end of an answer's topic.
    fn awkward_path() -> impl Strategy<Value = String> {
        let level = prop_oneof![level(), Just("status".to_owned()), Just("error".to_owned()), Just("7".to_owned())];
        prop::collection::vec(level, 1..4).prop_map(|levels| levels.join("/"))
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_the_same(
            app_version in level(), token in level(), path in path(),
            request in prop::option::of(1..=LAST_REQUEST),
            answer in prop::sample::select(vec![None, Some(Answer::Status), Some(Answer::Error)]),
        ) {
            let topic = Topic {
                app_version: &app_version, extension: "dcx", token: &token, path: &path, request, answer,
            };
            let text = topic.to_string();
            prop_assert_eq!(Topic::parse(&text), Ok(topic));
        }

        #[test]
        fn the_other_side_reads_a_request_the_same_and_its_answer_comes_back(
            app_version in "[a-z0-9_-]{1,12}", token in level(), path in path(), request in 1..=LAST_REQUEST,
        ) {
            let written = Topic {
                app_version: &app_version, extension: "cex", token: &token, path: &path,
                request: Some(request), answer: None,
            };
            let text = written.to_string();
            let read = standin::Topic::parse(&text).expect("the stand-in reads it");
            prop_assert_eq!(read.request_id.as_ref().map(standin::RequestId::number), Some(request));
            prop_assert_eq!(read.resource.join("/"), path.as_str());
            let answer = read.status();
            let back = Topic::parse(&answer).expect("an answer");
            prop_assert_eq!(back, Topic { answer: Some(Answer::Status), ..written });
        }

        #[test]
        fn a_resource_of_any_name_is_found_again_in_its_answer(
            app_version in level(), token in level(), path in awkward_path(), request in 1..=LAST_REQUEST,
        ) {
            let text = format!("kp1/{app_version}/cex/{token}/{path}");
            let (app_version, token, path) = (&*app_version, &*token, &*path);
            prop_assert_eq!(Resource::parse(&text), Some(Resource { app_version, extension: "cex", token, path }));
            let answer = format!("{text}/{request}/error");
            let read = Topic::parse(&answer).expect("an answer");
            prop_assert_eq!((read.path, read.request, read.answer), (path, Some(request), Some(Answer::Error)));
        }

        #[test]
        fn no_text_breaks_the_reader(text in ".{0,200}") {
            if let Ok(topic) = Topic::parse(&text) {
                prop_assert!(topic.request.is_none_or(|id| id <= LAST_REQUEST));
            }
            let _ = Topic::parse(&format!("kp1/{text}"));
        }
    }

    #[test]
    fn a_number_at_the_end_is_the_request_and_nothing_else_is() {
        for (text, path, request, answer) in [
            ("kp1/v1/dcx/T/json/42/status", "json", Some(42), Some(Answer::Status)),
            ("kp1/v1/dcx/T/json/42", "json", Some(42), None),
            ("kp1/v1/cex/T/command/reboot/status", "command/reboot", None, Some(Answer::Status)),
            ("kp1/v1/cmx/T/config/json/name/7/error", "config/json/name", Some(7), Some(Answer::Error)),
            ("kp1/v1/bcx/T/token/status", "token", None, Some(Answer::Status)),
            ("kp1/v1/tsx/T/9/status", "", Some(9), Some(Answer::Status)),
            ("kp1/v1/rsx/T/dcx/234531/status", "dcx", Some(234_531), Some(Answer::Status)),
            // Too large for an id of 32 bits: a part of the path.
            ("kp1/v1/dcx/T/json/4294967296", "json/4294967296", None, None),
        ] {
            let topic = Topic::parse(text).unwrap();
            assert_eq!((topic.path, topic.request, topic.answer), (path, request, answer), "{text}");
        }
        for text in [
            "",
            "kp1",
            "kp1/v1/dcx/T",
            "kp2/v1/dcx/T/json",
            "/kp1/v1/dcx/T/json",
            "kp1//dcx/T/json",
            "kp1/v1/dcx/T/json/",
        ] {
            assert!(Topic::parse(text).is_err(), "{text}");
        }
    }
}
