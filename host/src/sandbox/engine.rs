//! The engines that drivers run on, and why each setting is what it is.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use wasmparser::{Parser, Payload};
use wasmtime::{Config, Engine, WasmBacktraceDetails};

use super::limits::TICK;
use super::stacks::Stacks;

/// From this much initial data on, the instances of a component share what they
/// do not write: the snapshot of a Python interpreter has 10 MB.
const LARGE_DATA: usize = 1 << 20;

/// What depends on the component. Engines of different kinds do not run each
/// other's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Initial data is copied: an instance costs two maps of the 65,530 that the
    /// kernel allows a process, and for small drivers no more resident memory.
    Small,
    /// Initial data is mapped from one image, which costs two maps more.
    Large,
}

impl Kind {
    /// The one for a component.
    pub(super) fn of(component: &[u8]) -> Kind {
        let payloads = Parser::new(0).parse_all(component).map_while(Result::ok);
        let data = payloads.map(|payload| match payload {
            Payload::DataSection(section) => section.range().len(),
            _ => 0,
        });
        if data.sum::<usize>() < LARGE_DATA { Kind::Small } else { Kind::Large }
    }
}

/// An engine that compiles and runs components of one kind.
pub(super) fn engine(kind: Kind) -> Result<Engine> {
    let mut config = Config::new();
    config.epoch_interruption(true);
    // No guest needs it in contract 0.1, and a call costs a third without.
    config.concurrency_support(false);
    // The same inputs give the same outputs on every machine, so that a recorded run can be replayed.
    config.cranelift_nan_canonicalization(true);
    config.relaxed_simd_deterministic(true);
    // The errors of C programs, such as the Lua runtime's; the collector that comes with them stays closed to guests.
    config.wasm_exceptions(true);
    config.wasm_gc(false);
    config.wasm_function_references(false);
    // Traps name files and lines where the component has names for them.
    config.wasm_backtrace_details(WasmBacktraceDetails::Enable);
    // Deep recursion ends in a trap before the fiber's stack does.
    config.max_wasm_stack(512 << 10);
    config.async_stack_size(1 << 20);
    config.with_host_stack(Arc::new(Stacks));
    config.memory_init_cow(kind == Kind::Large);
    // The guard behind a memory is enough: offsets are never negative.
    config.guard_before_linear_memory(false);
    // The engine's usual 32 MiB and a bit: what is no multiple of 2 MiB the kernel
    // does not align for huge pages, so that neighbours touch and are one map.
    config.memory_guard_size((32 << 20) + (64 << 10));
    Engine::new(&config).map_err(|error| anyhow!("starting the WebAssembly engine: {error}"))
}

/// Advances the epoch of engines for as long as the first of them lives. A plain
/// thread, because it must tick when all async threads are busy with guests.
pub(super) fn start_ticker(engines: &[Engine]) -> Result<()> {
    let engines: Vec<_> = engines.iter().map(Engine::weak).collect();
    let tick = move || {
        let advance = |engine: &wasmtime::EngineWeak| engine.upgrade().map(|engine| engine.increment_epoch()).is_some();
        while engines.iter().filter(|engine| advance(engine)).count() > 0 {
            std::thread::sleep(TICK);
        }
    };
    std::thread::Builder::new().name("epoch".into()).spawn(tick).context("starting the epoch thread")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use wasm_encoder::{ConstExpr, DataSection, MemorySection, MemoryType, Module};

    use super::*;

    fn module(data: usize) -> Vec<u8> {
        let mut module = Module::new();
        let mut memories = MemorySection::new();
        let memory = MemoryType { minimum: 64, maximum: None, memory64: false, shared: false, page_size_log2: None };
        memories.memory(memory);
        module.section(&memories);
        let mut segments = DataSection::new();
        segments.active(0, &ConstExpr::i32_const(0), vec![1; data]);
        module.section(&segments);
        module.finish()
    }

    #[test]
    fn a_component_is_large_by_its_initial_data_and_runs_on_its_own_kind_of_engine_only() {
        assert_eq!(Kind::of(&module(1000)), Kind::Small);
        assert_eq!(Kind::of(&module(LARGE_DATA)), Kind::Large);
        assert_eq!(Kind::of(b"no component"), Kind::Small);
        let code = engine(Kind::Small).unwrap().precompile_component(b"\0asm\x0d\0\x01\0").unwrap();
        assert!(super::super::cache::load_code(&engine(Kind::Small).unwrap(), &code).is_ok());
        assert!(super::super::cache::load_code(&engine(Kind::Large).unwrap(), &code).is_err());
    }

    #[test]
    fn the_collector_that_exceptions_need_is_closed_to_guests() {
        use wasm_encoder::{Encode, FieldType, StorageType, TypeSection, ValType};
        let mut types = TypeSection::new();
        types.ty().struct_([FieldType { element_type: StorageType::Val(ValType::I32), mutable: true }]);
        let mut module = Module::new();
        module.section(&types);
        let mut component = b"\0asm\x0d\0\x01\0\x01".to_vec();
        module.as_slice().encode(&mut component);
        let error = format!("{:#}", engine(Kind::Small).unwrap().precompile_component(&component).unwrap_err());
        assert!(error.contains("without the gc feature"), "{error}");
    }
}
