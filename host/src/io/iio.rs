//! Channels of Linux's industrial I/O, by their files.

use std::io;
use std::path::PathBuf;

use crate::bus::Pin as Device;
use crate::config::AnalogInput;

/// Its files count in thousandths: mV, mA, thousandths of a degree.
const MILLI: f64 = 0.001;

/// An analog input.
pub struct Channel(AnalogInput);

impl Channel {
    pub fn new(settings: &AnalogInput) -> Channel {
        Channel(settings.clone())
    }

    /// The number in one of the channel's files.
    fn number(&self, what: &str) -> io::Result<f64> {
        let mut path = self.0.channel.clone().into_os_string();
        path.push(what);
        let path = PathBuf::from(path);
        let text = std::fs::read_to_string(&path).map_err(|error| named(&path, &error))?;
        let text = text.trim();
        text.parse()
            .map_err(|_| named(&path, &format!("expected a number, found {:?}", crate::text::shortened(text, 40))))
    }
}

fn named(path: &std::path::Path, problem: &impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {problem}", path.display()))
}

impl Device for Channel {
    /// What the kernel has calculated, or what it says how to.
    fn read(&self) -> io::Result<f64> {
        if let Ok(number) = self.number("_input") {
            return Ok(number * MILLI * self.0.factor);
        }
        let raw = self.number("_raw")?;
        let offset = self.number("_offset").unwrap_or(0.0);
        let scale = self.number("_scale").unwrap_or(1.0);
        Ok((raw + offset) * scale * MILLI * self.0.factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_raw_offset_and_scale_or_what_the_kernel_has_made_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let read = |factor| Channel(AnalogInput { channel: folder.path().join("in_current0"), factor }).read();
        assert!(read(1.0).unwrap_err().to_string().contains("in_current0_raw"));
        write("in_current0_raw", "1000\n");
        write("in_current0_offset", "600\n");
        write("in_current0_scale", "0.0075\n");
        assert!((read(1.0).unwrap() - 0.012).abs() < 1e-12);
        write("in_current0_raw", "nonsense\n");
        assert!(read(1.0).unwrap_err().to_string().ends_with("in_current0_raw: expected a number, found \"nonsense\""));
        write("in_current0_input", "4000\n");
        assert!((read(2.5).unwrap() - 10.0).abs() < 1e-12);
    }
}
