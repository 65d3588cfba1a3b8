//! Who may come in.

/// A client's name and password; the platform's names are `<name>@<tenant>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The whole name.
    pub name: String,
    /// The password.
    pub password: String,
}
