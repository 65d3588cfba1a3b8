//! What is done again at each change: the driver is built and its scenarios run,
//! each by this program as a child, so that neither holds up what is shown.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sandgate::watcher::Watcher;
use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::source::{self, Source};

/// What there is to tell.
#[derive(Debug)]
pub(super) enum News {
    /// Sources have changed, and are being built.
    Building,
    /// A component is there, in this file. Also one that needs no building.
    Built(Duration, PathBuf),
    /// It could not be built; what the tools said.
    NotBuilt(String),
    /// The scenarios have run.
    Tested(Tested),
}

/// How the scenarios went.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Tested {
    pub scenarios: Vec<Scenario>,
    /// Why they could not be run.
    #[serde(skip)]
    pub problem: Option<String>,
    #[serde(skip)]
    pub took: Duration,
}

#[derive(Debug, Deserialize)]
pub(super) struct Scenario {
    pub file: PathBuf,
    pub name: String,
    pub failure: Option<Failure>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Failure {
    pub line: u64,
    pub problems: Vec<String>,
}

impl Tested {
    pub(super) fn failed(&self) -> usize {
        self.scenarios.iter().filter(|scenario| scenario.failure.is_some()).count()
    }
}

/// Builds and tests at each change, until nobody listens any more.
pub(super) async fn run(
    source: Arc<Source>,
    known: PathBuf,
    news: mpsc::Sender<News>,
    mut again: mpsc::Receiver<()>,
) -> Result<()> {
    let (sender, mut changes) = mpsc::channel(1);
    let mut watcher = Watcher::start(sender)?;
    let mut component = Some(known.clone());
    loop {
        // What changes during a run counts for the next.
        let files = source.files();
        watcher.watch(files.iter().map(PathBuf::as_path));
        if let Some(component) = &component {
            // Nobody may listen any more at the end.
            let _ = news.send(News::Tested(test(&source, component).await)).await;
        }
        component = match wait(&source, &files, &mut changes, &mut again).await {
            Wanted::Tests => component.or_else(|| Some(known.clone())),
            Wanted::All => build(&source, &known, &news).await,
        };
    }
}

/// What is to be done again.
enum Wanted {
    All,
    Tests,
}

/// Waits for a change, or until somebody wants the scenarios to run again.
async fn wait(
    source: &Source,
    files: &[PathBuf],
    changes: &mut mpsc::Receiver<std::collections::BTreeSet<PathBuf>>,
    again: &mut mpsc::Receiver<()>,
) -> Wanted {
    loop {
        tokio::select! {
            Some(changed) = changes.recv() => {
                let is_tests = changed.iter().all(|file| file.to_string_lossy().ends_with(".test.yml"));
                return if is_tests { Wanted::Tests } else { Wanted::All };
            }
            Some(()) = again.recv() => return Wanted::Tests,
            () = tokio::time::sleep(source::LOOK) => {
                // Files that are new are not watched yet.
                if source.files() != files {
                    return Wanted::All;
                }
            }
        }
    }
}

/// Builds, if there is something to build; gives the component.
async fn build(source: &Source, known: &Path, news: &mpsc::Sender<News>) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Built {
        file: PathBuf,
    }
    let begin = Instant::now();
    let tell = async |told: News| drop(news.send(told).await);
    if !source.is_built() {
        tell(News::Built(begin.elapsed(), known.to_owned())).await;
        return Some(known.to_owned());
    }
    tell(News::Building).await;
    let problem = match ask(&["build".as_ref(), source.folder().as_os_str(), "--json".as_ref()]).await {
        Ok(output) => match serde_json::from_slice::<Built>(&output.stdout) {
            Ok(Built { file }) => {
                tell(News::Built(begin.elapsed(), file.clone())).await;
                return Some(file);
            }
            // What cargo has said says more than what became of it.
            Err(_) => [String::from_utf8_lossy(&output.stderr).trim().to_owned(), problem_of(&output)].join("\n"),
        },
        Err(error) => format!("{error:#}"),
    };
    tell(News::NotBuilt(problem.trim().to_owned())).await;
    None
}

/// Runs the scenarios.
async fn test(source: &Source, component: &Path) -> Tested {
    let begin = Instant::now();
    let tests = source.tests.as_os_str();
    let arguments = ["test".as_ref(), component.as_os_str(), "--tests".as_ref(), tests, "--json".as_ref()];
    let tested = match ask(&arguments).await {
        Ok(output) => serde_json::from_slice(&output.stdout).unwrap_or_else(|_| could_not(&problem_of(&output))),
        Err(error) => could_not(&format!("{error:#}")),
    };
    Tested { took: begin.elapsed(), ..tested }
}

fn could_not(problem: &str) -> Tested {
    Tested { problem: Some(problem.to_owned()), ..Tested::default() }
}

/// Why there are no results.
fn problem_of(output: &Output) -> String {
    #[derive(Deserialize)]
    struct Problem {
        error: String,
    }
    match serde_json::from_slice::<Problem>(&output.stdout) {
        Ok(Problem { error }) => error,
        Err(_) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    }
}

/// Runs this program, and ends it when nobody waits for it any more.
async fn ask(arguments: &[&std::ffi::OsStr]) -> Result<Output> {
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command.output().await.context("starting this program again")
}
