//! What scripts ask of the host, by a look at their words. Nothing is run.

use std::collections::{BTreeMap, BTreeSet};

use super::Sources;

/// Libraries that the runtime brings.
const LIBRARIES: [&str; 11] = [
    "enapter.sma.modbustcp",
    "enapter.ucm",
    "enapter.ucm.config",
    "enapter.ucm.generics.can",
    "enapter.ucm.generics.di7",
    "enapter.ucm.generics.rl6",
    "enapter.ucm.qmodbus",
    "hashings.sha256",
    "inspect",
    "json",
    "net.url",
];

/// What only other implementations of Lua have: scripts look which one runs them.
const OF_OTHERS: [&str; 4] = ["bit", "bit32", "ffi", "jit"];

/// Modules of the API that this gateway has nothing for, with what that is.
const NOT_HERE: [(&str, &str); 3] =
    [("analogout", "analog outputs"), ("ucm", "commands to other devices"), ("websocket", "web sockets")];

/// Where the runtime looks for a module.
const FOLDERS: [&str; 5] = ["", "src/", "lua/", "lua_modules/", "lua_modules/share/lua/5.3/"];

/// What was found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Calls such as `http.get`: modules and their functions.
    calls: BTreeMap<String, BTreeSet<String>>,
    /// Texts that fields of a table are set to, by the field.
    texts: BTreeMap<String, BTreeSet<String>>,
    /// Libraries of the runtime that are required.
    libraries: BTreeSet<String>,
    /// Modules that are nowhere, with the place that asks for them.
    unknown: Vec<(String, String)>,
}

impl Scan {
    /// Looks at all that is reached from the main script.
    pub fn of(sources: &Sources, main: &str) -> Scan {
        let mut scan = Scan::default();
        let mut seen = BTreeSet::from([main.to_owned()]);
        let mut waiting = vec![main.to_owned()];
        let folder = main.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
        let all: BTreeMap<&str, &[u8]> = sources.scripts().collect();
        while let Some(path) = waiting.pop() {
            let words = words(&String::from_utf8_lossy(all.get(path.as_str()).copied().unwrap_or_default()));
            for required in scan.look(&words) {
                let found = candidates(&required.name, &folder).find(|path| sources.has(path));
                match found {
                    Some(found) if seen.insert(found.clone()) => waiting.push(found),
                    Some(_) => {}
                    None if LIBRARIES.contains(&required.name.as_str()) => {
                        scan.libraries.insert(required.name);
                    }
                    None if required.is_tried || OF_OTHERS.contains(&required.name.as_str()) => {}
                    None => scan.unknown.push((format!("{path}:{}", required.line), required.name)),
                }
            }
        }
        scan
    }

    /// Notes the calls of a script; gives the modules that it requires.
    fn look(&mut self, words: &[Word]) -> Vec<Required> {
        let mut required = Vec::new();
        for (place, word) in words.iter().enumerate() {
            let after = |distance: usize| words.get(place + distance).map(|word| &word.kind);
            let before = place.checked_sub(1).and_then(|place| words.get(place)).map(|word| &word.kind);
            self.note_text(words, place);
            let Kind::Name(name) = &word.kind else { continue };
            if matches!(before, Some(Kind::Sign('.' | ':'))) {
                continue;
            }
            if let (Some(Kind::Sign('.')), Some(Kind::Name(function))) = (after(1), after(2)) {
                self.calls.entry(name.clone()).or_default().insert(function.clone());
            }
            if name == "require" {
                let is_open = after(1) == Some(&Kind::Sign('('));
                if let Some(Kind::Text(module)) = after(1 + usize::from(is_open)) {
                    required.push(Required { name: module.clone(), line: word.line, is_tried: false });
                }
                // `pcall(require, "x")` has an answer for its absence.
                if let (Some(Kind::Sign(',')), Some(Kind::Text(module))) = (after(1), after(2)) {
                    required.push(Required { name: module.clone(), line: word.line, is_tried: true });
                }
            }
        }
        required
    }

    /// Notes `field = 'text'` and `['field'] = 'text'`.
    fn note_text(&mut self, words: &[Word], place: usize) {
        let kind = |distance: usize| words.get(place + distance).map(|word| &word.kind);
        let (field, after) = match (kind(0), kind(1), kind(2)) {
            (Some(Kind::Name(field)), ..) => (field, 1),
            (Some(Kind::Sign('[')), Some(Kind::Text(field)), Some(Kind::Sign(']'))) => (field, 3),
            _ => return,
        };
        if let (Some(Kind::Sign('=')), Some(Kind::Text(text))) = (kind(after), kind(after + 1)) {
            self.texts.entry(field.clone()).or_default().insert(text.clone());
        }
    }

    /// Texts that a field is set to.
    pub fn texts_of(&self, field: &str) -> impl Iterator<Item = &String> {
        self.texts.get(field).into_iter().flatten()
    }

    fn calls(&self, module: &str, function: &str) -> bool {
        self.calls.get(module).is_some_and(|functions| functions.contains(function))
    }

    /// Names of Modbus lines that are asked for.
    pub fn lines(&self) -> Vec<&'static str> {
        let is_modbus = self.serial_ports().is_empty() || self.is_of_a_line();
        let of = |name: &'static str| (is_modbus && self.calls(name, "init")).then_some(name);
        let mut lines: Vec<&str> = [of("rs485"), of("rs232")].into_iter().flatten().collect();
        if lines.is_empty() && (self.calls("modbusrtu", "new") || self.is_of_either_way() || self.is_of_a_line()) {
            lines.push("rs485");
        }
        lines
    }

    /// Names of serial ports that are asked for without Modbus; `*` where the user's
    /// configuration has the name.
    pub fn serial_ports(&self) -> Vec<&'static str> {
        let of = |name: &'static str| (self.calls(name, "send") || self.calls(name, "receive")).then_some(name);
        let any = self.calls("serial", "new").then_some("*");
        [of("rs485"), of("rs232"), any].into_iter().flatten().collect()
    }

    /// The CAN bus that is asked for; `*` where the user's configuration has its name.
    pub fn can_bus(&self) -> Option<&'static str> {
        let named = self.calls("can", "new").then_some("*");
        named.or(self.calls("can", "init").then_some("can"))
    }

    /// Whether inputs or outputs of the machine are asked for.
    pub fn wants_io(&self) -> bool {
        const MODULES: [&str; 8] = ["ai4", "analogin", "di7", "digitalin", "digitalout", "relay", "rl", "rl6"];
        MODULES.iter().any(|module| self.calls.contains_key(*module))
    }

    /// The line of scripts that do not name one.
    pub fn line(&self) -> &'static str {
        self.lines().first().copied().unwrap_or("rs485")
    }

    fn is_of_a_line(&self) -> bool {
        let own = self.calls("modbus", "read_holdings") || self.calls("modbus", "read_inputs");
        own || self.libraries.contains("enapter.ucm.qmodbus")
    }

    /// Whether the user's configuration says if it is a line or an address.
    pub fn is_of_either_way(&self) -> bool {
        self.calls("modbus", "new")
    }

    /// Whether Modbus TCP is asked for.
    pub fn wants_tcp(&self) -> bool {
        let by_library = self.libraries.contains("enapter.sma.modbustcp");
        by_library || self.is_of_either_way() || self.calls("modbustcp", "new")
    }

    /// Whether HTTP is asked for.
    pub fn wants_http(&self) -> bool {
        self.calls.contains_key("http")
    }

    /// What cannot work here, a sentence each.
    pub fn missing(&self) -> Vec<String> {
        let unknown = self.unknown.iter().map(|(place, name)| {
            format!(
                "{place}: require {name:?}: no such file in the blueprint and no such library; put it into lua_modules/"
            )
        });
        let absent: BTreeSet<&str> =
            NOT_HERE.iter().filter(|(module, _)| self.calls.contains_key(*module)).map(|(_, what)| *what).collect();
        let absent = absent
            .into_iter()
            .map(|what| format!("the scripts ask for {what}, which this gateway does not have; such calls fail"));
        unknown.chain(absent).collect()
    }
}

/// A module that a script asks for.
struct Required {
    name: String,
    line: usize,
    /// Whether the script goes on without.
    is_tried: bool,
}

/// The files in which a module may be.
fn candidates(module: &str, folder: &str) -> impl Iterator<Item = String> {
    let plain = module.trim_start_matches("./");
    let path = plain.strip_suffix(".lua").unwrap_or(plain).replace('.', "/");
    let folder = folder.to_owned();
    let places =
        FOLDERS.iter().flat_map(move |place| [format!("{place}{path}.lua"), format!("{place}{path}/init.lua")]);
    places.flat_map(move |place| [format!("{folder}{place}"), place])
}

/// A word of a script.
#[derive(Debug, PartialEq)]
struct Word {
    kind: Kind,
    line: usize,
}

#[derive(Debug, PartialEq)]
enum Kind {
    Name(String),
    Text(String),
    Sign(char),
}

/// The words of a script without its comments.
fn words(script: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = script;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let (length, kind) = match first {
            '-' if rest.starts_with("--") => {
                let comment = rest.get(2..).unwrap_or_default();
                let length = long(comment).map_or(comment.find('\n').unwrap_or(comment.len()), |(length, _)| length);
                (2 + length, None)
            }
            '"' | '\'' => quoted(rest, first),
            '[' if long(rest).is_some() => {
                let (length, text) = long(rest).unwrap_or_default();
                (length, Some(Kind::Text(text.to_owned())))
            }
            _ if first == '_' || first.is_ascii_alphabetic() => {
                let end = rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
                (end, Some(Kind::Name(rest.get(..end).unwrap_or_default().to_owned())))
            }
            _ if first.is_whitespace() => (first.len_utf8(), None),
            sign => (sign.len_utf8(), Some(Kind::Sign(sign))),
        };
        let (taken, left) = rest.split_at_checked(length).unwrap_or((rest, ""));
        words.extend(kind.map(|kind| Word { kind, line }));
        line += taken.matches('\n').count();
        rest = left;
    }
    words
}

/// A text in quotes, with the length that it takes.
fn quoted(rest: &str, quote: char) -> (usize, Option<Kind>) {
    let mut is_escaped = false;
    let end = rest.char_indices().skip(1).find(|(_, c)| {
        let is_end = *c == quote && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        is_end
    });
    let end = end.map_or(rest.len(), |(end, _)| end);
    (end + 1, rest.get(1..end).map(|text| Kind::Text(text.to_owned())))
}

/// A text or a comment in long brackets, with the length that it takes.
fn long(rest: &str) -> Option<(usize, &str)> {
    let level = rest.strip_prefix('[')?;
    let signs = level.len() - level.trim_start_matches('=').len();
    let inner = level.get(signs..)?.strip_prefix('[')?;
    let end = format!("]{}]", "=".repeat(signs));
    let length = inner.find(&end).unwrap_or(inner.len());
    Some(((2 + signs + length + end.len()).min(rest.len()), inner.get(..length)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_comments_and_texts_are_no_calls() {
        let script = "-- http.get('x')\n--[[ can.init()\n]] a = [==[ rl6.get() ]] ]==]\nb = \"a\\\"http.get\" x.http.get()\n\
                      http\n.post('x') 'end";
        let mut scan = Scan::default();
        scan.look(&words(script));
        assert_eq!(scan.calls.keys().collect::<Vec<_>>(), ["http", "x"]);
        assert!(scan.calls("http", "post") && !scan.calls("http", "get"));
    }

    #[test]
    fn libraries_ask_for_what_they_need_and_texts_of_fields_are_found() {
        let script = "local sma = require('enapter.sma.modbustcp')\nif jit then require('bit') end\n\
                      t = { status = 'ok' }; t.status = 'error'; t['mode'] = \"x\"; if status == 'no' then end";
        let sources: Sources = [("main.lua".to_owned(), script.as_bytes().to_vec())].into_iter().collect();
        let scan = Scan::of(&sources, "main.lua");
        assert!(scan.wants_tcp() && scan.missing().is_empty(), "{:?}", scan.missing());
        assert_eq!(scan.texts_of("status").collect::<Vec<_>>(), ["error", "ok"]);
        assert_eq!(scan.texts_of("mode").collect::<Vec<_>>(), ["x"]);
    }

    #[test]
    fn rubbish_is_words_of_some_kind() {
        for script in ["'", "\"\\", "[[", "[=[ ]]", "--[==[", "é'ü", "[", "--"] {
            let _ = words(script);
        }
    }
}
