//! Stand-ins for clouds: local servers that speak a cloud's device protocol, so
//! that drivers, the demo and the tests need no account and no internet.
//!
//! `sandgate cloud` runs them as programs; tests start them in their own process.
//! Nothing of the gateway depends on them.

pub mod broker;
pub mod enapter;
pub mod kaa;
mod time;
