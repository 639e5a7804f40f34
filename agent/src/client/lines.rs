//! Newline-delimited JSON as it arrives.

use std::marker::PhantomData;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::{ClientError, broken};

/// Longest line; the agent cuts the lines of shards well below it.
const MAX_LINE_BYTES: usize = 4 << 20;

/// A stream of JSON values, one a line.
#[derive(Debug)]
pub struct Lines<T> {
    body: Incoming,
    read: Vec<u8>,
    /// Up to here `read` has no line end.
    searched: usize,
    kind: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    pub(super) fn new(body: Incoming) -> Self {
        Self { body, read: Vec::new(), searched: 0, kind: PhantomData }
    }

    /// The next value; none at the end. May be cancelled.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(at) = self.read[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=self.searched + at).collect();
                self.searched = 0;
                return serde_json::from_slice(&line).map(Some).map_err(broken);
            }
            self.searched = self.read.len();
            if self.read.len() > MAX_LINE_BYTES {
                return Err(broken("a line of the answer is too long"));
            }
            match self.body.frame().await {
                Some(frame) => self.read.extend_from_slice(&frame.map_err(broken)?.into_data().unwrap_or_default()),
                None if self.read.is_empty() => return Ok(None),
                None => return Err(broken("the answer ends in the middle of a line")),
            }
        }
    }
}
