//! Answers of one JSON object a line, which can go on while things happen.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::stream;
use serde::Deserialize;

use super::super::Shared;
use super::super::platform::Platform;
use super::super::ring::Ring;

/// Lines that are written at once; the platform waits meanwhile.
const BATCH: usize = 200;

/// Which items are asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Range {
    /// Maximum rows, the newest; default 100.
    limit: Option<u64>,
    /// Whether to go on with new ones.
    #[serde(default)]
    follow: bool,
}

/// Some lines, and how it goes on.
pub(super) struct Batch {
    lines: String,
    next: u64,
    is_end: bool,
}

impl Batch {
    /// Writes items from a number on, up to another one if there is one.
    pub(super) fn of<T>(ring: &Ring<T>, from: u64, until: Option<u64>, json: impl Fn(&T) -> String) -> Batch {
        let mut batch = Batch { lines: String::new(), next: from + ring.missed(from), is_end: false };
        let is_over = |next: u64| until.is_some_and(|until| next >= until);
        for item in ring.from(from).take(BATCH) {
            if is_over(batch.next) {
                break;
            }
            batch.lines.push_str(&json(item));
            batch.lines.push('\n');
            batch.next += 1;
        }
        batch.is_end = is_over(batch.next);
        batch
    }

    /// Adds a line and ends.
    pub(super) fn end_with(mut self, line: &str) -> Batch {
        self.lines.push_str(line);
        self.lines.push('\n');
        self.is_end = true;
        self
    }

    /// Nothing, and nothing to come.
    pub(super) fn end() -> Batch {
        Batch { lines: String::new(), next: 0, is_end: true }
    }

    /// Whether all that there is now has been written.
    pub(super) fn has_all<T>(&self, ring: &Ring<T>) -> bool {
        self.next >= ring.end()
    }
}

impl Range {
    /// The number of the first item, and the one before which to end: what
    /// comes later is not waited for, nor chased.
    pub(super) fn of<T>(&self, ring: &Ring<T>) -> (u64, Option<u64>) {
        (ring.newest(self.limit.unwrap_or(100)), (!self.follow).then(|| ring.end()))
    }
}

/// Writes batches until the last one.
pub(super) fn lines(
    shared: Arc<Shared>,
    from: u64,
    next: impl Fn(&Platform, u64) -> Batch + Send + Sync + 'static,
) -> Response {
    let changed = shared.changed.subscribe();
    let state = (shared, changed, from, next, false);
    let lines = stream::unfold(state, |(shared, mut changed, from, next, is_over)| async move {
        if is_over {
            return None;
        }
        loop {
            changed.mark_unchanged();
            let batch = next(&shared.platform(), from);
            let is_over = batch.is_end || shared.closed.load(Ordering::Relaxed);
            if is_over || !batch.lines.is_empty() {
                let state = (shared, changed, batch.next, next, is_over);
                return Some((Ok::<_, Infallible>(batch.lines), state));
            }
            // The sender lives as long as what is shared.
            let _ = changed.changed().await;
        }
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_it_was_asked_to() {
        let mut ring = Ring::new(1000, usize::MAX);
        (0..500).for_each(|number| ring.push(number, 1));
        let range = |limit, follow| Range { limit: Some(limit), follow }.of(&ring);
        assert_eq!((range(300, false), range(300, true)), ((200, Some(500)), (200, None)));
        assert_eq!(Range { limit: None, follow: false }.of(&ring), (400, Some(500)));
        ring.push(500, 1);
        let (mut next, mut lines, mut batches) = (200, String::new(), 0);
        loop {
            let batch = Batch::of(&ring, next, Some(500), i32::to_string);
            (next, batches) = (batch.next, batches + 1);
            lines.push_str(&batch.lines);
            if batch.is_end {
                break;
            }
        }
        assert_eq!((next, batches, lines.lines().next(), lines.lines().last()), (500, 2, Some("200"), Some("499")));
        let rest = Batch::of(&ring, 500, None, i32::to_string);
        assert_eq!((rest.lines.as_str(), rest.next, rest.is_end, rest.has_all(&ring)), ("500\n", 501, false, true));
    }
}
