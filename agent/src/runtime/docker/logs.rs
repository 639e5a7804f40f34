//! A container's output as lines, whether the engine sends it multiplexed or from a terminal.

use std::{collections::VecDeque, time::Duration};

use bollard::{container::LogOutput as Chunk, query_parameters::LogsOptions};
use futures_util::{Stream, StreamExt, future, stream};

use super::{connection::Connection, failure::Failure};
use crate::runtime::{LogLine, LogOutput, Operation, RuntimeError, ShardId};

/// Longest line; what is longer comes in pieces.
const LINE_MAX: usize = 16 * 1024;

/// The last `tail` lines, and with `follow` all that come.
pub(super) fn read(
    engine: std::sync::Arc<Connection>,
    id: ShardId,
    tail: Option<usize>,
    follow: bool,
) -> impl Stream<Item = Result<LogLine, RuntimeError>> + Send + 'static {
    let options = LogsOptions {
        follow,
        stdout: true,
        stderr: true,
        tail: tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string()),
        ..Default::default()
    };
    let connected = async move {
        match engine.client_for_stream(Operation::Logs).await {
            Ok(client) => chunks(&client, engine, id, options).left_stream(),
            Err(error) => stream::once(future::ready(Err(error))).right_stream(),
        }
    };
    lines(stream::once(connected).flatten())
}

fn chunks(
    client: &bollard::Docker,
    engine: std::sync::Arc<Connection>,
    id: ShardId,
    options: LogsOptions,
) -> impl Stream<Item = Result<Chunk, RuntimeError>> + Send + use<> {
    let patience = if options.follow { None } else { Some(engine.timeouts.change) };
    bounded(client.logs(&id.0, Some(options)), patience).map(move |chunk| {
        let chunk = chunk.ok_or_else(|| RuntimeError::TimedOut {
            operation: Operation::Logs,
            engine: engine.address().to_owned(),
            after: engine.timeouts.change,
        })?;
        chunk.map_err(|error| match Failure::of(error, Operation::Logs, engine.address()) {
            Failure::NotFound(_) => RuntimeError::NoSuchShard { operation: Operation::Logs, id: id.clone() },
            other => other.into_error(Operation::Logs, engine.address()),
        })
    })
}

/// With patience, ends with None when the next item doesn't come in time: what is there already comes at once, only
/// what is followed may take its time.
fn bounded<T: Send + 'static>(
    items: impl Stream<Item = T> + Send + 'static,
    patience: Option<Duration>,
) -> impl Stream<Item = Option<T>> + Send + 'static {
    stream::unfold(Some(Box::pin(items)), move |items| async move {
        let mut items = items?;
        let Some(patience) = patience else { return items.next().await.map(|item| (Some(item), Some(items))) };
        match tokio::time::timeout(patience, items.next()).await {
            Ok(item) => item.map(|item| (Some(item), Some(items))),
            Err(_) => Some((None, None)),
        }
    })
}

/// Cuts chunks into lines; what has no line end when the stream ends is a line too.
fn lines(
    chunks: impl Stream<Item = Result<Chunk, RuntimeError>> + Send + 'static,
) -> impl Stream<Item = Result<LogLine, RuntimeError>> + Send + 'static {
    let state = (Box::pin(chunks), Splitter::default(), false);
    stream::unfold(state, async |(mut chunks, mut splitter, mut ended)| {
        loop {
            if let Some(line) = splitter.ready.pop_front() {
                return Some((Ok(line), (chunks, splitter, ended)));
            }
            if ended {
                return None;
            }
            match chunks.next().await {
                Some(Ok(chunk)) => splitter.add(&chunk),
                Some(Err(error)) => return Some((Err(error), (chunks, Splitter::default(), true))),
                None => {
                    ended = true;
                    splitter.finish();
                }
            }
        }
    })
}

#[derive(Default)]
struct Splitter {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    ready: VecDeque<LogLine>,
}

impl Splitter {
    fn add(&mut self, chunk: &Chunk) {
        let (output, pending) = match chunk {
            Chunk::StdErr { .. } => (LogOutput::Stderr, &mut self.stderr),
            Chunk::StdOut { .. } | Chunk::Console { .. } | Chunk::StdIn { .. } => (LogOutput::Stdout, &mut self.stdout),
        };
        for byte in chunk.as_ref() {
            if *byte == b'\n' || pending.len() == LINE_MAX {
                self.ready.push_back(line(output, pending));
            }
            if *byte != b'\n' {
                pending.push(*byte);
            }
        }
    }

    fn finish(&mut self) {
        for (output, pending) in [(LogOutput::Stdout, &mut self.stdout), (LogOutput::Stderr, &mut self.stderr)] {
            if !pending.is_empty() {
                self.ready.push_back(line(output, pending));
            }
        }
    }
}

fn line(output: LogOutput, pending: &mut Vec<u8>) -> LogLine {
    let bytes = std::mem::take(pending);
    // A terminal ends lines with "\r\n".
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(&bytes);
    LogLine { output, text: String::from_utf8_lossy(bytes).into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_become_lines() {
        let out = |text: &'static str| Ok(Chunk::StdOut { message: text.into() });
        let err = |text: &'static str| Ok(Chunk::StdErr { message: text.into() });
        let tty = |text: &'static str| Ok(Chunk::Console { message: text.into() });
        let chunks = stream::iter(vec![out("a\nb"), err("E1\n"), out("c\n\n"), tty("t\r\n"), err("tail")]);
        let found: Vec<_> =
            lines(chunks).map(|line| line.unwrap()).map(|line| (line.output, line.text)).collect().await;
        let expected = [
            (LogOutput::Stdout, "a"),
            (LogOutput::Stderr, "E1"),
            (LogOutput::Stdout, "bc"),
            (LogOutput::Stdout, ""),
            (LogOutput::Stdout, "t"),
            (LogOutput::Stderr, "tail"),
        ];
        assert_eq!(found, expected.map(|(output, text)| (output, text.to_owned())));
    }

    #[tokio::test]
    async fn long_lines_come_in_pieces() {
        let long = "x".repeat(LINE_MAX * 2 + 1);
        let chunks = stream::iter(vec![Ok(Chunk::StdOut { message: long.into() })]);
        let found: Vec<_> = lines(chunks).map(|line| line.unwrap().text.len()).collect().await;
        assert_eq!(found, [LINE_MAX, LINE_MAX, 1]);
    }
}
