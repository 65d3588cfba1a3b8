//! Where a device takes commands: its URL and, when it asks for them, user and
//! password. Pure.
//!
//! Tasmota takes commands at `/cm?cmnd=…` and credentials as `user` and
//! `password` beside it. The password stands in the URL then, so nothing here
//! can be printed and no error repeats what it was given.

use std::fmt::Write as _;

use sandgate_driver::Error;

use crate::config::Connection;

/// Where a device takes commands.
pub struct Address {
    /// Up to `cmnd=`.
    prefix: String,
}

impl Address {
    /// Checks the operator's URL and makes it an address for commands.
    pub fn new(connection: &Connection) -> Result<Address, Error> {
        let url = connection.url.trim().trim_end_matches('/');
        let lower = url.to_ascii_lowercase();
        let rest = lower.strip_prefix("http://").or_else(|| lower.strip_prefix("https://"));
        let is_plain = |rest: &str| {
            let host = rest.split('/').next().unwrap_or_default();
            !host.is_empty() && !rest.contains(|c: char| "@?#\\".contains(c) || c.is_whitespace() || c.is_control())
        };
        if !rest.is_some_and(is_plain) {
            // It may hold a password that does not belong there, so it is not repeated.
            return Err("connection.url: expected http://host or https://host, without user, ? and #".into());
        }
        let mut prefix = format!("{url}/cm?");
        if let Some(password) = connection.password.as_deref().filter(|password| !password.is_empty()) {
            prefix.push_str("user=");
            encode(&mut prefix, &connection.user);
            prefix.push_str("&password=");
            encode(&mut prefix, password);
            prefix.push('&');
        }
        prefix.push_str("cmnd=");
        Ok(Address { prefix })
    }

    /// The URL that carries out a command such as `Power On`.
    pub fn url_of(&self, command: &str) -> String {
        let mut url = self.prefix.clone();
        encode(&mut url, command);
        url
    }
}

/// Appends a text with everything but unreserved characters percent-encoded
/// (RFC 3986, 2.3).
fn encode(url: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => url.push(char::from(byte)),
            // Writing to a string cannot fail.
            _ => drop(write!(url, "%{byte:02X}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(url: &str, password: Option<&str>) -> Result<String, String> {
        let connection = Connection {
            url: url.into(),
            user: "admin".into(),
            password: password.map(str::to_owned),
            poll_ms: 2000,
            timeout_ms: 3000.0,
        };
        let address = Address::new(&connection).map_err(|error| error.text().to_owned())?;
        Ok(address.url_of("Power1 On"))
    }

    #[test]
    fn commands_are_encoded_and_slashes_do_not_double() {
        let expected = Ok("http://192.168.1.50/cm?cmnd=Power1%20On".to_owned());
        for given in ["http://192.168.1.50", "http://192.168.1.50/", " http://192.168.1.50/ "] {
            assert_eq!(url(given, None), expected);
            assert_eq!(url(given, Some("")), expected);
        }
        assert_eq!(
            url("https://[fd00::1]:8443/lamp", None),
            Ok("https://[fd00::1]:8443/lamp/cm?cmnd=Power1%20On".into())
        );
    }

    #[test]
    fn a_password_of_any_characters_stays_one_parameter() {
        let found = url("http://lamp.local", Some("a&b=c#d %é+"));
        let expected = "http://lamp.local/cm?user=admin&password=a%26b%3Dc%23d%20%25%C3%A9%2B&cmnd=Power1%20On";
        assert_eq!(found, Ok(expected.to_owned()));
    }

    #[test]
    fn a_wrong_url_is_refused_without_repeating_it() {
        for wrong in
            ["192.168.1.50", "http://", "ftp://lamp", "http://me:secret@lamp", "http://lamp/?a=secret", "http://a b"]
        {
            let error = url(wrong, None).err().unwrap_or_default();
            assert!(error.starts_with("connection.url: expected http://host"), "{wrong}");
            assert!(!error.contains("secret"));
        }
    }
}
