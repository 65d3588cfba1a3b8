//! Bindings of `wit/`, generated at build time. Nothing is written by hand here.

#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction)]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "sandgate:driver/driver",
    imports: {
        "sandgate:driver/telemetry.flush": async | trappable,
        "sandgate:driver/net": async | trappable,
        "sandgate:driver/http": async | trappable,
        "sandgate:driver/modbus.[static]unit.open": trappable,
        "sandgate:driver/modbus.[method]unit.set-timeout": trappable,
        "sandgate:driver/modbus.[method]unit.set-pause": trappable,
        "sandgate:driver/modbus": async | trappable,
        "sandgate:driver/io.[static]output.open": trappable,
        "sandgate:driver/io.[static]input.open": trappable,
        "sandgate:driver/io.[static]analog.open": trappable,
        "sandgate:driver/io": async | trappable,
        "sandgate:driver/serial.[static]port.open": trappable,
        "sandgate:driver/serial.[method]port.settings": trappable,
        "sandgate:driver/serial.[method]port.release": trappable,
        "sandgate:driver/serial": async | trappable,
        "sandgate:driver/storage": async | trappable,
        "sandgate:driver/metadata": async | trappable,
        "sandgate:driver/blobs": async | trappable,
        default: trappable,
    },
    exports: { default: async },
    with: {
        "sandgate:driver/types": sandgate_manifest::contract::sandgate::driver::types,
        "sandgate:driver/net.tcp-connection": crate::sandbox::net::Connection,
        "sandgate:driver/modbus.unit": crate::sandbox::modbus::Unit,
        "sandgate:driver/io.output": crate::sandbox::io::Output,
        "sandgate:driver/io.input": crate::sandbox::io::Input,
        "sandgate:driver/io.analog": crate::sandbox::io::Analog,
        "sandgate:driver/serial.port": crate::sandbox::serial::Port,
    },
    require_store_data_send: true,
    additional_derives: [PartialEq, serde::Serialize, serde::Deserialize],
});
