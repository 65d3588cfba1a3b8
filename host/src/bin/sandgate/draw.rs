//! How things from outside are drawn on a terminal.

use ratatui::style::Stylize;
use ratatui::text::{Line, Text};
use sandgate::logs::LogLine;
use sandgate::status::DeviceReport;
use sandgate::text::visible;
use serde_json::Value as Json;

/// A text from outside as it may be drawn.
pub(crate) fn seen(text: &str) -> Line<'static> {
    Line::from(visible(text).into_owned())
}

/// The same for several lines.
pub(crate) fn seen_text(text: &str) -> Text<'static> {
    Text::from(text.lines().map(seen).collect::<Vec<_>>())
}

/// A line of the log, coloured by its level.
pub(crate) fn log_line(line: &LogLine) -> Line<'_> {
    let text = line.display();
    match line.level.as_str() {
        "error" => Line::from(text).red(),
        "warn" => Line::from(text).yellow(),
        _ => Line::from(text),
    }
}

/// A text that says where it was cut.
pub(crate) fn ended(text: &str, width: u16) -> String {
    let width = usize::from(width);
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// The last values, the status before all.
pub(crate) fn values(device: &DeviceReport) -> Vec<String> {
    let mut names: Vec<(&String, &Json)> =
        device.telemetry.iter().filter(|(_, value)| !value.is_null() && !value.is_array()).collect();
    let rank = |name: &str| match name {
        "status" => 0,
        name if name.contains("total") || name.contains("power") || name.contains("soc") => 1,
        _ => 2,
    };
    names.sort_by_key(|(name, _)| rank(name));
    let shown = names.into_iter().map(|(name, value)| match value {
        Json::String(text) => format!("{name}={text}"),
        Json::Number(number) if number.is_f64() => format!("{name}={:.1}", number.as_f64().unwrap_or_default()),
        other => format!("{name}={other}"),
    });
    shown.map(|text| visible(&text).into_owned()).collect()
}

/// Whole parts only, as many as fit: half a number is another number.
pub(crate) fn lay_out(parts: &[String], width: usize, lines: usize, between: &str) -> String {
    let mut all = vec![String::new()];
    for part in parts {
        let size = part.chars().count();
        let fits = |line: &String| {
            let before = line.chars().count();
            size + before + if before > 0 { between.len() } else { 0 } <= width
        };
        if !all.last().is_some_and(fits) && all.len() < lines {
            all.push(String::new());
        }
        if let Some(line) = all.last_mut().filter(|line| fits(line)) {
            if !line.is_empty() {
                line.push_str(between);
            }
            line.push_str(part);
        }
    }
    all.join("\n")
}
