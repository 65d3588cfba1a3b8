//! What a trap says to the author of a driver: the reason, the panic's own
//! words, and the driver's own functions without those of its language.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wasmtime::component::ResourceTableError;

use super::state::MAX_HANDLES;
use crate::text;

/// Longer texts are cut.
const MAX_REASON: usize = 4 << 10;
const MAX_WORDS: usize = 1000;
/// Names of functions are a line's part.
const MAX_FRAME: usize = 160;
/// Functions that are shown.
const FRAMES: usize = 3;
/// Lines that are kept.
const LINES: usize = 16;

/// What a driver wrote to standard error in a call: a language says there why
/// it gives up.
#[derive(Debug, Clone, Default)]
pub(super) struct LastWords(Arc<Mutex<VecDeque<String>>>);

impl LastWords {
    /// A call begins.
    pub(super) fn begin(&self) {
        self.lock().clear();
    }

    /// The driver wrote a line.
    pub(super) fn note(&self, line: &str) {
        let mut lines = self.lock();
        if lines.len() >= LINES {
            lines.pop_front();
        }
        lines.push_back(text::cut(line, MAX_WORDS).to_owned());
    }

    /// Why the driver gave up, if it said so.
    fn reason(&self) -> Option<String> {
        let lines = self.lock();
        let begins = |line: &&String| ["panic: ", "fatal error: "].iter().any(|mark| line.starts_with(mark));
        // Rust: the place in the line, the message in the next ones.
        if let Some(start) = lines.iter().position(|line| line.contains("panicked at ")) {
            let place = lines.get(start)?.split_once("panicked at ")?.1.trim_end_matches(':');
            let message = lines.iter().skip(start + 1).take_while(|line| !line.starts_with("note: "));
            let message = message.map(String::as_str).collect::<Vec<_>>().join(" ");
            return Some(text::shortened(&format!("panicked at {place}: {message}"), MAX_WORDS).into_owned());
        }
        lines.iter().find(begins).or_else(|| lines.back()).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line about a trap.
pub(super) fn describe(error: &wasmtime::Error, words: &LastWords) -> String {
    let reason = match error.downcast_ref::<ResourceTableError>() {
        Some(ResourceTableError::Full) => format!("it holds more than {MAX_HANDLES} units, connections and streams"),
        _ => error.root_cause().to_string(),
    };
    let trace = error.downcast_ref::<wasmtime::WasmBacktrace>().map(ToString::to_string).unwrap_or_default();
    let mut line = text::shortened(&reason, MAX_REASON).into_owned();
    // Whoever leaves by other traps had no time for words.
    let gave_up = reason.contains("unreachable") || reason.contains("exit");
    if let Some(words) = words.reason().filter(|_| gave_up) {
        line.push_str(": ");
        line.push_str(&words);
    }
    let frames = own_frames(&trace);
    if !frames.is_empty() {
        line.push_str("; at ");
        line.push_str(&frames.join(" < "));
    }
    line
}

/// A function in a trace.
struct Frame {
    name: String,
    /// File and line, where the component has names for them.
    place: Option<String>,
    times: usize,
}

/// The innermost functions of the driver itself, each once. Lines look like
/// `    0:   0x1a2b - module!function`, or `    0:   0x1a2b - function` and below
/// it `    at file:line:column`.
fn own_frames(trace: &str) -> Vec<String> {
    let mut frames: Vec<Frame> = Vec::new();
    // Whether the function of the line above is shown.
    let mut is_shown = false;
    for line in trace.lines() {
        if let Some(place) = line.trim_start().strip_prefix("at ").filter(|_| is_shown) {
            if let Some(frame) = frames.last_mut() {
                frame.place.get_or_insert_with(|| short_place(place));
            }
            continue;
        }
        let Some((_, name)) = line.split_once(" - ").or_else(|| line.split_once("- ")) else { continue };
        let is_module = |text: &str| text == "<unknown>" || !text.contains("::") && !text.contains([' ', '<']);
        let name = name.split_once('!').filter(|(module, _)| is_module(module)).map_or(name, |(_, name)| name);
        let name = readable(name);
        is_shown = !is_of_language(&name);
        match frames.last_mut() {
            Some(last) if last.name == name => last.times += 1,
            _ if is_shown => frames.push(Frame { name, place: None, times: 1 }),
            _ => {}
        }
    }
    let shown = frames.into_iter().take(FRAMES).map(|Frame { name, place, times }| {
        let name = text::shortened(&name, MAX_FRAME);
        let place = place.map(|place| format!(" ({place})")).unwrap_or_default();
        if times > 1 { format!("{name}{place} ({times} times)") } else { format!("{name}{place}") }
    });
    shown.collect()
}

/// File and line without the folders of whoever built it, and without the column.
fn short_place(place: &str) -> String {
    let place = place.trim_end();
    let mut parts = place.rsplitn(2, ':');
    let without_column = match (parts.next(), parts.next()) {
        (Some(_), Some(rest)) if rest.rsplit(':').next().is_some_and(|line| line.parse::<u32>().is_ok()) => rest,
        _ => place,
    };
    let short = match without_column.rfind("/src/") {
        Some(start) => without_column.get(start + 1..).unwrap_or(without_column),
        None => without_column.rsplit('/').next().unwrap_or(without_column),
    };
    text::shortened(short, MAX_FRAME).into_owned()
}

/// A function's name without what only a compiler needs: `[hash]` behind a
/// crate, `::h<hash>` at the end.
fn readable(name: &str) -> String {
    let name = name.trim();
    let is_hash = |text: &str| text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = match name.rsplit_once("::h") {
        Some((name, hash)) if is_hash(hash) => name,
        _ => name,
    };
    let mut readable = String::with_capacity(name.len());
    for (number, part) in name.split('[').enumerate() {
        match part.split_once(']') {
            Some((hash, rest)) if number > 0 && is_hash(hash) => readable.push_str(rest),
            _ => {
                if number > 0 {
                    readable.push('[');
                }
                readable.push_str(part);
            }
        }
    }
    readable
}

/// Whether a function belongs to a language's runtime or to the contract, and
/// not to the driver.
fn is_of_language(name: &str) -> bool {
    const CRATES: [&str; 12] = [
        "std",
        "core",
        "alloc",
        "__rustc",
        "panic_abort",
        "dlmalloc",
        "wit_bindgen",
        "wit_bindgen_rt",
        "compiler_builtins",
        "runtime",
        "internal",
        "libc",
    ];
    const NAMES: [&str; 8] =
        ["abort", "exit", "_Exit", "_start", "rust_panic", "rust_begin_unwind", "cabi_realloc", "proc_exit"];
    let start = name.trim_start_matches(['<', '&', '*', '(']).trim_start_matches("dyn ").trim_start_matches("mut ");
    let root = start.split(['.', '<', ' ']).next().unwrap_or(start);
    let root = root.split("::").next().unwrap_or(root);
    CRATES.contains(&root)
        || NAMES.contains(&name)
        || root.starts_with("__")
        // An export of the contract; which one, the error says already.
        || name.split_once('#').is_some_and(|(interface, _)| interface.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUST: &str = "error while executing at wasm backtrace:
    0:  0x196b7 - hostile-673eb22366566d41.wasm!abort
    1:  0x16b77 - hostile-673eb22366566d41.wasm!std[d123b7a1a2ed1472]::sys::pal::wasi::helpers::abort_internal
    2:  0x1229b - hostile-673eb22366566d41.wasm!__rustc[b7974e8690430dd9]::__rust_abort
    3:  0x178d0 - x.wasm!std[d123b7a1a2ed1472]::sys::backtrace::__rust_end_short_backtrace::<std[d123b7a1a2ed1472]::panicking::panic_handler::{closure#0}, !>
    4:   0x9b32 - hostile-673eb22366566d41.wasm!core[6d9e98711c484d2e]::panicking::panic_fmt
    5:   0x8cf7 - hostile-673eb22366566d41.wasm!<hostile[aaaabbbbccccdddd]::Meter as sandgate_driver[aaaabbbbccccdddd]::Driver>::on_timer
    6:   0x7a5a - hostile-673eb22366566d41.wasm!hostile::act::h2b3ac490af1876ce
    7:   0x7a5a - hostile-673eb22366566d41.wasm!hostile::act::h2b3ac490af1876ce
    8:   0xb36e - hostile-673eb22366566d41.wasm!sandgate:driver/device-driver@0.1.1#on-timer
";

    #[test]
    fn a_trace_shows_the_drivers_own_functions() {
        assert_eq!(
            own_frames(RUST),
            ["<hostile::Meter as sandgate_driver::Driver>::on_timer", "hostile::act (2 times)"]
        );
        let go =
            "    0: 0x1 - m!runtime._panic\n    1: 0x2 - m!main.(*Meter).Poll\n    2: 0x3 - m!interface:{x}.$invoke";
        assert_eq!(own_frames(go), ["main.(*Meter).Poll", "interface:{x}.$invoke"]);
        let with_lines = "    0:  0x1 - std::rt::begin_panic\n    at /rustc/abc/library/std/src/rt.rs:1:2
    1:  0x2 - meter::read
                    at /home/me/meter/src/lib.rs:45:20
                - meter::Meter::poll::{closure#0}
                    at /home/me/meter/src/poll.rs:7
    2:  0x3 - main.poll
                    at main.go:9:1";
        assert_eq!(
            own_frames(with_lines),
            ["meter::read (src/lib.rs:45)", "meter::Meter::poll::{closure#0} (src/poll.rs:7)", "main.poll (main.go:9)"]
        );
        assert!(own_frames("    0:  0x196b7 - <unknown>!abort\n").is_empty());
        assert!(own_frames("").is_empty());
    }

    #[test]
    fn the_last_words_are_the_panics() {
        for (lines, expected) in [
            (
                &["before", "thread '<unnamed>' (1) panicked at src/lib.rs:45:20:", "on", "purpose", "note: run with"]
                    [..],
                Some("panicked at src/lib.rs:45:20: on purpose"),
            ),
            (&["panic: index out of range", "", "goroutine 1 [running]:"], Some("panic: index out of range")),
            (
                &["Traceback (most recent call last):", "ZeroDivisionError: division by zero"],
                Some("ZeroDivisionError: division by zero"),
            ),
            (&[], None),
        ] {
            let words = LastWords::default();
            lines.iter().for_each(|line| words.note(line));
            assert_eq!(words.reason().as_deref(), expected);
            words.begin();
            assert_eq!(words.reason(), None);
        }
        let words = LastWords::default();
        (0..1000).for_each(|number| words.note(&format!("{number}{}", "x".repeat(MAX_WORDS))));
        let lines = words.lock();
        assert_eq!((lines.len(), lines.iter().map(String::len).max()), (LINES, Some(MAX_WORDS)));
    }
}
