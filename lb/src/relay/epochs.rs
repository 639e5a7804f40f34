//! How many connections each of a worker's backends still has. Pure.

/// Connections by backend; each [`advance`](Self::advance) begins the next one.
#[derive(Debug, Default)]
pub(super) struct Epochs {
    current: u32,
    /// Only those with connections: one or two in practice.
    live: Vec<(u32, u32)>,
}

impl Epochs {
    pub(super) fn current(&self) -> u32 {
        self.current
    }

    pub(super) fn advance(&mut self) {
        self.current += 1;
    }

    /// A connection to the current backend began.
    pub(super) fn open(&mut self) -> u32 {
        match self.live.iter_mut().find(|(epoch, _)| *epoch == self.current) {
            Some((_, count)) => *count += 1,
            None => self.live.push((self.current, 1)),
        }
        self.current
    }

    /// A connection of `epoch` ended.
    pub(super) fn close(&mut self, epoch: u32) {
        if let Some(position) = self.live.iter().position(|(of, _)| *of == epoch) {
            self.live[position].1 -= 1;
            if self.live[position].1 == 0 {
                self.live.swap_remove(position);
            }
        }
    }

    /// Connections of backends before `epoch`.
    pub(super) fn before(&self, epoch: u32) -> u32 {
        self.live.iter().filter(|(of, _)| *of < epoch).map(|(_, count)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_with_the_backend_they_began_on() {
        let mut epochs = Epochs::default();
        let first = epochs.open();
        epochs.open();
        epochs.advance();
        let second = epochs.open();
        assert_eq!((epochs.before(first), epochs.before(second), epochs.before(second + 1)), (0, 2, 3));
        epochs.close(first);
        epochs.close(second);
        assert_eq!((epochs.before(second), epochs.before(second + 1)), (1, 1));
        epochs.close(first);
        assert_eq!(epochs.before(u32::MAX), 0);
    }
}
