//! Runs Enapter's Lua blueprints: reference Lua 5.3 and Enapter's API in both of
//! its generations, over the driver contract.
//!
//! The scripts are files in the driver; `blueprint.json` among them says what
//! `sandgate build` has found out about them. `src/lua` has the API as scripts
//! see it, `host` what that is made of.

mod about;
mod convert;
mod deadline;
mod host;
mod require;
mod script;

use sandgate_driver::{Attribute, Command, CommandError, Configuration, Context, Driver, Error, TimerId, files};

use about::About;
use script::Script;

// The exports of a component are symbols with names of their own.
#[cfg(target_arch = "wasm32")]
#[allow(unsafe_code)]
mod check {
    #[allow(missing_docs, clippy::all, clippy::pedantic, clippy::restriction)]
    mod bindings {
        wit_bindgen::generate!({
            path: "wit",
            world: "sandgate:lua/runtime",
            pub_export_macro: true,
            export_macro_name: "export_check",
        });
    }
    struct Check;

    impl bindings::exports::sandgate::lua::check::Guest for Check {
        fn problems() -> Vec<String> {
            crate::script::problems()
        }
    }

    bindings::export_check!(Check with_types_in bindings);
}

/// A blueprint at work.
struct Blueprint {
    script: Script,
}

impl Driver for Blueprint {
    fn start(context: Context) -> Result<Self, Error> {
        let about = About::read(files::read(about::FILE).as_deref())?;
        let script = Script::load(&about, context.configuration.as_str())?;
        Ok(Blueprint { script })
    }

    fn on_timer(&mut self, timer: TimerId) -> Result<(), Error> {
        self.script.timer(timer)
    }

    fn handle_command(&mut self, command: Command) -> Result<Vec<Attribute>, CommandError> {
        self.script.command(&command)
    }

    fn configure(&mut self, configuration: Configuration) -> Result<(), Error> {
        self.script.configure(configuration.as_str())
    }
}

// On the host it is only tested.
const _: () = sandgate_driver::is_driver::<Blueprint>();

#[cfg(target_arch = "wasm32")]
type Adapter = sandgate_driver::Adapter<Blueprint>;
#[cfg(target_arch = "wasm32")]
sandgate_driver::bindings::export_bindings!(Adapter with_types_in sandgate_driver::bindings);
