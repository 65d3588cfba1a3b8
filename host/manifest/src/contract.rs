//! The contract's plain types, generated from `wit/` at build time: values,
//! attributes, rejections. They import nothing, so that everybody may use them.

#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction)]

wasmtime::component::bindgen!({
    path: "../../wit",
    interfaces: "import sandgate:driver/types@0.1.3;",
    additional_derives: [PartialEq, serde::Serialize, serde::Deserialize],
});

pub use self::sandgate::driver::types::{Attribute, Rejection, Value};
