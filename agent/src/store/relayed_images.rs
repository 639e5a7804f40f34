//! Images whose programs did not accept from a listener of ours, so that their shards start on relay at once. Owns one
//! file of the state directory, written atomically; obeys none that it cannot read whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};

use super::{StoreError, sealed};
use crate::{clock, runtime::ImageId};

const FILE: &str = "relayed-images.json";
/// The format that is written, and the only one that is read.
const VERSION: u32 = 2;
/// Images that are remembered; one more lets the oldest be tried again.
const MAX_IMAGES: usize = 256;
/// Longest reason that is kept, in characters.
const MAX_REASON_CHARS: usize = 400;

/// What is remembered of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// What was seen.
    pub reason: String,
    /// When, in seconds since 1970.
    pub at_unix_s: u64,
}

/// The images, by id.
#[derive(Debug)]
pub struct RelayedImages {
    path: PathBuf,
    images: BTreeMap<ImageId, Refusal>,
}

impl Refusal {
    /// Seen just now.
    pub fn now(reason: &str) -> Self {
        let since = clock::wall().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { reason: reason.chars().take(MAX_REASON_CHARS).collect(), at_unix_s: since.as_secs() }
    }
}

/// As in "seen at 2026-11-22T10:00:00Z: it did not accept".
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.at_unix_s / 86_400, self.at_unix_s % 86_400);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "at {year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z: {}", self.reason)
    }
}

/// Howard Hinnant's `civil_from_days`: years begin in March, so that the leap day is the last.
fn date(days_since_1970: u64) -> (u64, u64, u64) {
    let days = days_since_1970 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * from_march + 2) / 5 + 1, (from_march + 2) % 12 + 1);
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

impl RelayedImages {
    /// What the state directory has. What can't be obeyed is set aside as `relayed-images.json.broken`, and the second
    /// value says so: every image is then tried anew.
    pub(super) fn load(directory: &Path) -> (Self, Option<String>) {
        let path = directory.join(FILE);
        let (images, fault) = match sealed::read(&path, VERSION) {
            Ok(images) => (images.unwrap_or_default(), None),
            Err(fault) => (BTreeMap::new(), Some(sealed::set_aside(&path, &fault))),
        };
        (Self { path, images }, fault)
    }

    /// What is remembered of the image.
    pub fn get(&self, image: &ImageId) -> Option<&Refusal> {
        self.images.get(image)
    }

    /// All of them.
    pub fn ids(&self) -> BTreeSet<ImageId> {
        self.images.keys().cloned().collect()
    }

    /// Remembers the image, in the file too.
    ///
    /// # Errors
    /// When the file can't be written; until the agent ends it is remembered all the same.
    pub fn remember(&mut self, image: ImageId, refusal: Refusal) -> Result<(), StoreError> {
        self.images.insert(image, refusal);
        while self.images.len() > MAX_IMAGES {
            let oldest =
                self.images.iter().min_by_key(|(_, refusal)| refusal.at_unix_s).map(|(image, _)| image.clone());
            oldest.iter().for_each(|oldest| drop(self.images.remove(oldest)));
        }
        self.write()
    }

    /// Forgets the image; false if it isn't remembered.
    ///
    /// # Errors
    /// As [`remember`](Self::remember).
    pub fn forget(&mut self, image: &ImageId) -> Result<bool, StoreError> {
        if self.images.remove(image).is_none() {
            return Ok(false);
        }
        self.write().map(|()| true)
    }

    fn write(&self) -> Result<(), StoreError> {
        sealed::write(&self.path, VERSION, &self.images)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn image(name: &str) -> ImageId {
        ImageId::new(name)
    }

    fn load(directory: &Path) -> RelayedImages {
        let (images, fault) = RelayedImages::load(directory);
        assert_eq!(fault, None);
        images
    }

    #[test]
    fn what_is_remembered_outlives_the_agent_and_can_be_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let mut images = load(directory.path());
        images.remember(image("sha256:a"), Refusal { reason: "it did not".into(), at_unix_s: 951_782_400 }).unwrap();
        images.remember(image("b"), Refusal::now(&"x".repeat(1000))).unwrap();
        let mut images = load(directory.path());
        assert_eq!(images.get(&image("a")).unwrap().to_string(), "at 2000-02-29T00:00:00Z: it did not");
        assert_eq!(images.get(&image("b")).unwrap().reason.len(), MAX_REASON_CHARS);
        assert!(images.forget(&image("a")).unwrap());
        assert!(!images.forget(&image("a")).unwrap());
        assert_eq!(load(directory.path()).ids(), [image("b")].into());
    }

    #[test]
    fn no_more_than_the_bound_are_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let mut images = load(directory.path());
        for at_unix_s in 0..300 {
            images.remember(image(&at_unix_s.to_string()), Refusal { reason: String::new(), at_unix_s }).unwrap();
        }
        let images = load(directory.path());
        assert_eq!(images.ids().len(), MAX_IMAGES);
        assert!(images.get(&image("43")).is_none() && images.get(&image("44")).is_some());
    }

    #[test]
    fn what_is_torn_or_foreign_is_set_aside_and_not_obeyed() {
        let directory = tempfile::tempdir().unwrap();
        load(directory.path()).remember(image("a"), Refusal { reason: "r".into(), at_unix_s: 1 }).unwrap();
        let whole = fs::read_to_string(directory.path().join(FILE)).unwrap();
        let check = |text: &str, expected: &str| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(FILE);
            fs::write(&path, text).unwrap();
            let (mut images, fault) = RelayedImages::load(directory.path());
            assert!(images.ids().is_empty(), "{text}");
            assert!(fault.as_ref().is_some_and(|fault| fault.contains(expected)), "{fault:?} lacks {expected}");
            assert_eq!(fs::read_to_string(path.with_extension("json.broken")).unwrap(), text);
            images.remember(image("a"), Refusal::now("")).unwrap();
            assert_eq!(load(directory.path()).ids().len(), 1);
        };
        check("", "not what an agent writes");
        check(&whole[..20], "not what an agent writes");
        check(&whole[..whole.len() - 2], "checksum");
        check(&whole.replace("\"r\"", "\"s\""), "checksum");
        check(&whole.replacen(":2", ":3", 1), "version 3");
    }
}
