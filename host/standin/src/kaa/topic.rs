//! The topic grammar of 1/KP, in both directions.
//!
//! ```text
//! request  = "kp1/" app-version "/" extension "/" token [ "/" resource ] [ "/" request-id ]
//! response = request "/status" | request "/error"
//! push     = request without request-id "/status"
//! ```
//!
//! The service parses requests with it and prints the topics of its answers.
//! It does not know which extensions and resources there are.

use std::fmt;

/// Topics longer than this are dropped: an answer repeats the topic.
pub const MAX_LENGTH: usize = 1024;

/// Request ids are 32-bit signed integers inside the platform.
const MAX_REQUEST_ID: u64 = i32::MAX as u64;

/// A request's topic, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// The application version's name: `a-z`, `0-9`, `_`, `-`.
    pub app_version: String,
    /// The extension instance: `dcx`, `cex`, …
    pub extension: String,
    /// The endpoint token.
    pub token: String,
    /// The levels of the resource path; none for extensions that have one resource only.
    pub resource: Vec<String>,
    /// The last level, if it is a number.
    pub request_id: Option<RequestId>,
}

/// A request id as it was written; the answer repeats it letter for letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(String);

/// Why a topic is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Not of this protocol; nothing can be answered.
    #[error("{0}")]
    Foreign(String),
    /// Of this protocol but wrong; the error goes to the topic with `/error`.
    #[error("{0}")]
    Malformed(String),
}

impl RequestId {
    /// Reads one level: digits only, at most 2147483647. 0 is accepted, because vendor code sends it.
    ///
    /// None if the level is no number at all.
    fn parse(level: &str) -> Option<Result<RequestId, TopicError>> {
        if level.is_empty() || !level.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(match level.parse::<u64>() {
            Ok(number) if number <= MAX_REQUEST_ID => Ok(RequestId(level.to_owned())),
            _ => Err(TopicError::Malformed(format!("request id {level}: expected at most {MAX_REQUEST_ID}"))),
        })
    }

    /// The id as a number.
    pub fn number(&self) -> u32 {
        self.0.parse().unwrap_or_default()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Topic {
    /// Takes a topic apart, from the right: a number at the end is the request id.
    pub fn parse(text: &str) -> Result<Topic, TopicError> {
        if text.len() > MAX_LENGTH {
            return Err(TopicError::Foreign(format!("topic of {} bytes: expected at most {MAX_LENGTH}", text.len())));
        }
        let mut levels = text.split('/');
        if levels.next() != Some("kp1") {
            return Err(TopicError::Foreign("no kp1 topic".to_owned()));
        }
        let (Some(app_version), Some(extension), Some(token)) = (levels.next(), levels.next(), levels.next()) else {
            return Err(TopicError::Foreign("expected kp1/<app version>/<extension>/<token>/…".to_owned()));
        };
        let mut resource: Vec<String> = levels.map(str::to_owned).collect();
        let request_id = resource.last().and_then(|last| RequestId::parse(last)).transpose()?;
        if request_id.is_some() {
            resource.pop();
        }
        let malformed = |reason: String| Err(TopicError::Malformed(reason));
        if app_version.is_empty() || !app_version.bytes().all(is_app_version_byte) {
            return malformed(format!("app version {app_version:?}: expected a-z, 0-9, _ and -"));
        }
        if extension.is_empty() || resource.iter().any(String::is_empty) {
            return malformed("topic with an empty level".to_owned());
        }
        if !is_token(token) {
            return malformed(format!("token {token:?}: expected characters other than + # / ."));
        }
        if resource.iter().any(|level| level.contains(['+', '#'])) {
            return malformed("topic with a wildcard".to_owned());
        }
        Ok(Topic {
            app_version: app_version.to_owned(),
            extension: extension.to_owned(),
            token: token.to_owned(),
            resource,
            request_id,
        })
    }

    /// The resource's levels as texts.
    pub fn path(&self) -> Vec<&str> {
        self.resource.iter().map(String::as_str).collect()
    }

    /// The topic of the positive answer.
    pub fn status(&self) -> String {
        format!("{self}/status")
    }

    /// The topic of the negative answer.
    pub fn error(&self) -> String {
        format!("{self}/error")
    }

    /// The topic of a push of the same resource: it has no request id.
    pub fn push(&self) -> String {
        Topic { request_id: None, ..self.clone() }.status()
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kp1/{}/{}/{}", self.app_version, self.extension, self.token)?;
        for level in &self.resource {
            write!(f, "/{level}")?;
        }
        match &self.request_id {
            Some(id) => write!(f, "/{id}"),
            None => Ok(()),
        }
    }
}

fn is_app_version_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
}

/// Whether a text can be an endpoint token.
pub fn is_token(text: &str) -> bool {
    !text.is_empty() && !text.contains(['+', '#', '/', '.']) && !text.contains(char::is_control)
}

/// Whether a text can be the name of a command type or of a configuration.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn topics_are_taken_apart_from_the_right() {
        for (text, resource, id) in [
            ("kp1/a-v1/dcx/T/json", "json", None),
            ("kp1/a-v1/dcx/T/json/42", "json", Some(42)),
            ("kp1/a-v1/dcx/T/json/0", "json", Some(0)),
            ("kp1/a-v1/dcx/T/json/007", "json", Some(7)),
            ("kp1/a-v1/dcx/T/plain/humidity", "plain/humidity", None),
            ("kp1/a-v1/dcx/T/plain/5", "plain", Some(5)),
            ("kp1/a-v1/epmx/T/get/keys/2147483647", "get/keys", Some(2_147_483_647)),
            ("kp1/a-v1/cmx/T/config/json/room_1/5", "config/json/room_1", Some(5)),
            ("kp1/a-v1/tsx/T", "", None),
            ("kp1/a-v1/tsx/T/9", "", Some(9)),
            ("kp1/a-v1/tsx/12345", "", None),
            ("kp1/a-v1/rsx/T/dcx/234531", "dcx", Some(234_531)),
            ("kp1/a-v1/cex/T/command/x-5", "command/x-5", None),
        ] {
            let topic = Topic::parse(text).unwrap();
            assert_eq!(topic.resource.join("/"), resource, "{text}");
            assert_eq!(topic.request_id.as_ref().map(RequestId::number), id, "{text}");
            assert_eq!(topic.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_request_says_why() {
        let long = format!("kp1/a/dcx/T/{}", "x".repeat(2000));
        for (text, foreign) in [
            ("", true),
            ("kp1", true),
            ("kp1/a/dcx", true),
            ("/kp1/a/dcx/T/json", true),
            ("KP1/a/dcx/T/json", true),
            ("v1/to/me", true),
            (long.as_str(), true),
            ("kp1//dcx/T/json", false),
            ("kp1/A/dcx/T/json", false),
            ("kp1/a/dcx/T/json/", false),
            ("kp1/a/dcx/T//5", false),
            ("kp1/a//T/json", false),
            ("kp1/a/dcx//json", false),
            ("kp1/a/dcx/T.1/json", false),
            ("kp1/a/dcx/T/json/2147483648", false),
            ("kp1/a/dcx/T/json/99999999999999999999999", false),
        ] {
            match Topic::parse(text) {
                Err(TopicError::Foreign(_)) => assert!(foreign, "{text}"),
                Err(TopicError::Malformed(_)) => assert!(!foreign, "{text}"),
                Ok(topic) => panic!("{text:?} was read as {topic:?}"),
            }
        }
    }

    fn level() -> impl Strategy<Value = String> {
        "[A-Za-z_~-][A-Za-z0-9_ ~-]{0,12}"
    }

    fn any_topic() -> impl Strategy<Value = Topic> {
        let id = proptest::option::of((0..=i32::MAX as u32).prop_map(|number| RequestId(number.to_string())));
        let token = "[A-Za-z0-9_ :ä-]{1,20}";
        ("[a-z0-9_-]{1,12}", "[a-z_]{1,8}", token, proptest::collection::vec(level(), 0..5), id).prop_map(
            |(app_version, extension, token, resource, request_id)| Topic {
                app_version,
                extension,
                token,
                resource,
                request_id,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(topic in any_topic()) {
            prop_assert_eq!(Topic::parse(&topic.to_string()), Ok(topic));
        }

        #[test]
        fn what_is_read_is_printed_back(text in "kp1(/[a-z0-9_.+-]{0,5}){0,7}") {
            if let Ok(topic) = Topic::parse(&text) {
                prop_assert_eq!(topic.to_string(), text);
            }
        }

        #[test]
        fn no_text_breaks_the_parser(text in ".*") {
            let _ = Topic::parse(&text);
            let _ = Topic::parse(&format!("kp1/a/dcx/{text}"));
        }

        #[test]
        fn a_number_at_the_end_is_the_request_id_and_nothing_else_is(topic in any_topic(), number in any::<u64>()) {
            let bare = Topic { request_id: None, ..topic };
            let read = Topic::parse(&format!("{bare}/{number}"));
            if number <= MAX_REQUEST_ID {
                let read = read.unwrap();
                prop_assert_eq!(u64::from(read.request_id.clone().unwrap().number()), number);
                prop_assert_eq!(&read.resource, &bare.resource);
                prop_assert_eq!(read.status(), format!("{bare}/{number}/status"));
                prop_assert_eq!(read.error(), format!("{bare}/{number}/error"));
                prop_assert_eq!(read.push(), format!("{bare}/status"));
            } else {
                prop_assert!(matches!(read, Err(TopicError::Malformed(_))));
            }
            prop_assert_eq!(Topic::parse(&bare.to_string()).unwrap().request_id, None);
        }

        #[test]
        fn two_requests_never_share_an_answer(one in any_topic(), other in any_topic()) {
            prop_assert_eq!(one == other, one.status() == other.status());
            prop_assert_ne!(one.status(), other.error());
        }
    }
}
