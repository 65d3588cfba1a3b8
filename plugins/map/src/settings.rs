//! The device's configuration, as a map refers to it.

use serde_json::Value as Json;

use sandgate_driver::{Configuration, Error};
use sandgate_map::{Setting, milliseconds};

use crate::decode::Settings;

/// `{bucket: {parameter: value}}`.
#[derive(Debug, Default)]
pub struct Configured(Json);

impl Configured {
    pub fn of(configuration: &Configuration) -> Result<Configured, Error> {
        Ok(Configured(serde_json::from_str(configuration.as_str())?))
    }

    fn parameter(&self, path: &str) -> Option<&Json> {
        let (bucket, parameter) = path.split_once('.')?;
        self.0.get(bucket)?.get(parameter)
    }

    /// A time in milliseconds.
    pub fn time(&self, name: &str, setting: &Setting) -> Result<f64, Error> {
        let time = match setting {
            Setting::Text(text) => milliseconds(text).or_else(|| self.number(setting)),
            Setting::Number(_) => None,
        };
        time.ok_or_else(|| format!("map.{name}: expected a time such as 1s, or a parameter in milliseconds").into())
    }

    /// A unit's number.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it is one
    pub fn unit(&self, setting: &Setting) -> Result<u8, Error> {
        let number = self.number(setting).filter(|number| (0.0..=255.0).contains(number) && number.fract() == 0.0);
        number.map(|number| number as u8).ok_or_else(|| "map.unit: expected a unit of 0 to 255".into())
    }
}

impl Settings for Configured {
    fn number(&self, setting: &Setting) -> Option<f64> {
        match setting {
            Setting::Number(number) => Some(*number),
            Setting::Text(path) => self.parameter(path)?.as_f64(),
        }
    }

    fn is_true(&self, parameter: &str) -> bool {
        self.parameter(parameter).and_then(Json::as_bool) == Some(true)
    }
}
