//! A Modbus TCP device that behaves like two power meters and a hybrid
//! inverter over a day. Units 1 and 2 are PM2100 meters, unit 3 is the
//! inverter, every other unit is silent.
//!
//! The registers are those of `plugins/power-meter-pm2100` and
//! `plugins/inverter-deye`; sources of the facts stand in their READMEs.

use std::collections::HashMap;
use std::f64::consts::PI;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio_modbus::server::Service;
use tokio_modbus::server::tcp::{Server, accept_tcp_connection};
use tokio_modbus::{ExceptionCode, Request, Response, SlaveRequest};

/// The unit of the inverter.
pub const INVERTER: u8 = 3;
const DAY: f64 = 86_400.0;
/// The demo begins in the morning.
const BEGIN: f64 = 7.0 * 3600.0;

/// Starts the device and returns its port. One second is `speed` seconds there.
pub async fn start(speed: f64) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("opening the simulated Modbus device")?;
    let port = listener.local_addr().context("opening the simulated Modbus device")?.port();
    let field = Field { begin: Instant::now(), speed, settings: Arc::new(Mutex::new(default_settings())) };
    tokio::spawn(async move {
        let server = Server::new(listener);
        let serve = |stream, address| {
            let field = field.clone();
            async move { accept_tcp_connection(stream, address, move |_| Ok(Some(field.clone()))) }
        };
        let ignore = |error| tracing::debug!("simulated Modbus device: {error}");
        if let Err(error) = server.serve(&serve, ignore).await {
            tracing::error!("the simulated Modbus device ended: {error}");
        }
    });
    Ok(port)
}

#[derive(Clone)]
struct Field {
    begin: Instant,
    speed: f64,
    /// Registers of the inverter that can be written.
    settings: Arc<Mutex<HashMap<u16, u16>>>,
}

impl Service for Field {
    type Request = SlaveRequest<'static>;
    /// None leaves a request without an answer.
    type Response = Option<Response>;
    type Exception = ExceptionCode;
    type Future = BoxFuture<'static, Result<Option<Response>, ExceptionCode>>;

    fn call(&self, request: SlaveRequest<'static>) -> Self::Future {
        let field = self.clone();
        Box::pin(async move {
            // A line takes its time, and the inverter takes more.
            let pause = if request.slave == INVERTER { 15 } else { 3 };
            tokio::time::sleep(Duration::from_millis(pause)).await;
            field.answer(request.slave, &request.request)
        })
    }
}

impl Field {
    fn answer(&self, unit: u8, request: &Request<'static>) -> Result<Option<Response>, ExceptionCode> {
        let day = Day::at(BEGIN + self.begin.elapsed().as_secs_f64() * self.speed);
        Ok(Some(match (unit, request) {
            (1 | 2, Request::ReadHoldingRegisters(first, count)) => {
                Response::ReadHoldingRegisters(block(*first, *count, &meter(&day, unit)))
            }
            (INVERTER, Request::ReadHoldingRegisters(first, count)) => {
                let mut registers = inverter(&day);
                registers.extend(self.settings.lock().unwrap_or_else(PoisonError::into_inner).iter());
                Response::ReadHoldingRegisters(block(*first, *count, &registers))
            }
            (INVERTER, Request::WriteMultipleRegisters(first, values)) => {
                let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
                for (address, value) in (*first..).zip(values.iter()) {
                    if !(60..500).contains(&address) {
                        return Err(ExceptionCode::IllegalDataAddress);
                    }
                    settings.insert(address, *value);
                }
                Response::WriteMultipleRegisters(*first, u16::try_from(values.len()).unwrap_or_default())
            }
            (1..=3, _) => return Err(ExceptionCode::IllegalFunction),
            // Nobody there: no answer, as on a real line.
            _ => return Ok(None),
        }))
    }
}

/// The state of the site at one moment of a day.
struct Day {
    /// Seconds since midnight.
    second: f64,
    /// Days since the demo began, with fractions: drives the counters.
    days: f64,
    solar: f64,
    load: f64,
    battery: f64,
    charge: f64,
    grid: f64,
}

impl Day {
    fn at(time: f64) -> Day {
        let second = time % DAY;
        let hour = second / 3600.0;
        let sun = ((hour - 6.0) / 14.0 * PI).sin();
        let clouds = 1.0 - 0.25 * (second / 611.0).sin().max(0.0);
        let solar = if (6.0..20.0).contains(&hour) { 9000.0 * sun.max(0.0) * clouds } else { 0.0 };
        let bump = |center: f64, width: f64| (-((hour - center) / width).powi(2)).exp();
        let load = 900.0 + 1800.0 * bump(7.5, 1.0) + 2600.0 * bump(19.0, 2.0) + 150.0 * (second / 97.0).sin();
        // Charged by day, discharged in the evening and at night.
        let charge = 55.0 - 35.0 * ((hour - 1.0) / 24.0 * 2.0 * PI).cos() * 0.9 + 5.0 * (hour / 24.0);
        let battery = (load - solar).clamp(-4000.0, 4000.0) * if charge > 92.0 { 0.2 } else { 0.9 };
        Day {
            second,
            days: time / DAY,
            solar,
            load,
            battery,
            charge: charge.clamp(8.0, 99.0),
            grid: load - solar - battery,
        }
    }
}

type Registers = HashMap<u16, u16>;

fn block(first: u16, count: u16, registers: &Registers) -> Vec<u16> {
    (0..count).map(|offset| registers.get(&first.wrapping_add(offset)).copied().unwrap_or_default()).collect()
}

fn meter(day: &Day, unit: u8) -> Registers {
    let mut registers = Registers::new();
    // The first meter sees the whole house, the second one a heat pump.
    let total = if unit == 1 { day.load } else { 600.0 + 500.0 * (day.second / 1800.0 * 2.0 * PI).sin().signum() };
    let phases = [0.4, 0.35, 0.25].map(|part| total * part);
    for (index, power) in (0_u16..).zip(phases) {
        let voltage = 230.0 + 1.5 * (day.second / 307.0 + f64::from(index)).sin();
        put_f32(&mut registers, 2999 + 2 * index, power / voltage);
        put_f32(&mut registers, 3027 + 2 * index, voltage);
        put_f32(&mut registers, 3053 + 2 * index, power / 1000.0);
    }
    put_f32(&mut registers, 3059, total / 1000.0);
    put_f32(&mut registers, 3109, 50.0 + 0.02 * (day.second / 61.0).sin());
    let energy = 48_120.0 + day.days * 28.0;
    put_f32(&mut registers, 2699, energy);
    put_f32(&mut registers, 2703, energy);
    put_text(&mut registers, 49, "METSEPM2120");
    registers
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // registers wrap like the device's
fn inverter(day: &Day) -> Registers {
    let mut registers = Registers::new();
    let mut put = |address: u16, value: f64| {
        registers.insert(address, (value.round() as i64 & 0xFFFF) as u16);
    };
    put(0, 5.0);
    put(2, f64::from(0x0104));
    put(11, f64::from(0x1036));
    put(14, f64::from(0x2001));
    put(15, f64::from(0x1133));
    put(20, 120_000.0 % 65_536.0);
    put(21, 1.0);
    put(22, f64::from(0x0203));
    put(500, 2.0);
    let (solar_today, solar_total) = (day.solar.mul_add(0.001, day.second / 3600.0 * 2.0), 81_230.0 + day.days * 420.0);
    put(516, 31_000.0 + day.days * 100.0);
    put(518, 29_000.0 + day.days * 95.0);
    put(529, solar_today * 10.0);
    put(534, solar_total % 65_536.0);
    put(535, (solar_total / 65_536.0).floor());
    put(540, 1000.0 + 10.0 * (38.0 + day.solar / 600.0));
    put(541, 1000.0 + 10.0 * (34.0 + day.solar / 700.0));
    put(552, 0b111.into());
    // A passing fault in the evening, so that an alert shows.
    let hour = day.second / 3600.0;
    put(553, if (20.5..21.0).contains(&hour) { 0b10.into() } else { 0.0 });
    put(586, 1000.0 + 245.0);
    put(587, 5120.0 + day.charge * 4.0);
    put(588, day.charge);
    put(590, day.battery);
    put(591, day.battery / 52.0 * 100.0);
    put(609, 5000.0 + (day.second / 61.0).sin());
    for phase in 0..3_u16 {
        put(622 + phase, day.grid / 3.0);
        put(627 + phase, 2300.0 + 10.0 * (day.second / 307.0 + f64::from(phase)).sin());
        put(630 + phase, (day.solar + day.battery) / 3.0 / 230.0 * 100.0);
        put(633 + phase, (day.solar + day.battery) / 3.0);
        put(650 + phase, day.load / 3.0);
    }
    put(625, day.grid);
    put(636, day.solar + day.battery);
    put(653, day.load);
    for string in 0..2_u16 {
        put(672 + string, day.solar / 2.0);
        put(676 + 2 * string, if day.solar > 0.0 { 3800.0 } else { 120.0 });
        put(677 + 2 * string, day.solar / 2.0 / 380.0 * 10.0);
    }
    put_text(&mut registers, 3, "2309014711");
    registers
}

fn default_settings() -> HashMap<u16, u16> {
    HashMap::from([(98, 1), (102, 280), (108, 100), (109, 120), (128, 40), (130, 0), (142, 1), (145, 1), (336, 0)])
}

fn put_f32(registers: &mut Registers, address: u16, value: f64) {
    #[allow(clippy::cast_possible_truncation)] // the device has 32 bits
    let bits = (value as f32).to_bits();
    let [a, b, c, d] = bits.to_be_bytes();
    registers.insert(address, u16::from_be_bytes([a, b]));
    registers.insert(address + 1, u16::from_be_bytes([c, d]));
}

fn put_text(registers: &mut Registers, address: u16, text: &str) {
    for (offset, pair) in (0_u16..).zip(text.as_bytes().chunks(2)) {
        let high = pair.first().copied().unwrap_or_default();
        let low = pair.get(1).copied().unwrap_or_default();
        registers.insert(address + offset, u16::from_be_bytes([high, low]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sun_shines_by_day_and_the_power_balance_holds() {
        let (night, noon) = (Day::at(2.0 * 3600.0), Day::at(13.0 * 3600.0));
        assert_eq!(night.solar, 0.0);
        assert!(noon.solar > 5000.0);
        for day in [night, noon] {
            assert!((day.load - day.solar - day.battery - day.grid).abs() < 1e-6);
            assert!((8.0..=99.0).contains(&day.charge));
        }
    }
}
