//! Log macros: `info!("connected to {host}")`.

/// Writes a debug line to the device's log.
#[macro_export]
macro_rules! debug {
    ($($text:tt)*) => { $crate::logging::log($crate::logging::Level::Debug, &format!($($text)*)) };
}

/// Writes an info line to the device's log.
#[macro_export]
macro_rules! info {
    ($($text:tt)*) => { $crate::logging::log($crate::logging::Level::Info, &format!($($text)*)) };
}

/// Writes a warning to the device's log.
#[macro_export]
macro_rules! warning {
    ($($text:tt)*) => { $crate::logging::log($crate::logging::Level::Warning, &format!($($text)*)) };
}

/// Writes an error line to the device's log.
#[macro_export]
macro_rules! error {
    ($($text:tt)*) => { $crate::logging::log($crate::logging::Level::Error, &format!($($text)*)) };
}
