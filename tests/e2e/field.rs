//! A device in the field that notes everything: how often each command was
//! carried out, and which of its numbers the gateway has accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// See the module documentation. It speaks lines, to the driver `actuator`.
pub struct Field {
    pub port: u16,
    noted: Arc<Mutex<Noted>>,
}

#[derive(Default)]
pub struct Noted {
    /// The numbers that were given out so far.
    next: i64,
    /// Those of them whose samples were accepted.
    pub accepted: BTreeSet<i64>,
    /// How often each command was carried out.
    pub runs: BTreeMap<String, usize>,
    /// The commands in the order in which they came.
    pub order: Vec<String>,
}

impl Field {
    /// One that takes this long for each command.
    pub async fn start(pace: Duration) -> Field {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, noted) = (listener.local_addr().unwrap().port(), Arc::<Mutex<Noted>>::default());
        let all = Arc::clone(&noted);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let noted = Arc::clone(&all);
                tokio::spawn(async move {
                    // The gateway may be killed at any time.
                    let _ = serve(stream, &noted, pace).await;
                });
            }
        });
        Field { port, noted }
    }

    /// A device of the gateway that speaks to this one.
    pub fn device(&self, name: &str, interval_ms: u64) -> String {
        format!(
            "[devices.{name}]\ndriver = 'actuator.wasm'\nconfiguration.main.port = {}\n\
             configuration.main.interval_ms = {interval_ms}\ngrants.tcp = ['127.0.0.1:*']\nhealth_window = '1ms'\n\
             limits.telemetry = '1000/s'\n",
            self.port
        )
    }

    pub fn noted(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap()
    }
}

async fn serve(stream: TcpStream, noted: &Mutex<Noted>, pace: Duration) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let answer = match line.trim().split_once(' ') {
            Some(("act", id)) => {
                {
                    let mut noted = noted.lock().unwrap();
                    *noted.runs.entry(id.to_owned()).or_default() += 1;
                    noted.order.push(id.to_owned());
                }
                tokio::time::sleep(pace).await;
                0
            }
            Some((_, number)) => {
                noted.lock().unwrap().accepted.insert(number.parse().unwrap());
                0
            }
            None => {
                let mut noted = noted.lock().unwrap();
                noted.next += 1;
                noted.next
            }
        };
        stream.write_all(format!("{answer}\n").as_bytes()).await?;
    }
}
