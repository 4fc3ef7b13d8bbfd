//! How much of what a request reads is kept for its answer. What is applied is the same on every
//! member whatever it keeps: results lead to nothing but the answer.

/// See the module.
pub struct AnswerLimit {
    left_bytes: usize,
    /// Nothing more is kept.
    ended: bool,
    too_large: bool,
}

impl AnswerLimit {
    /// Up to `bytes`; nothing where nobody waits for the answer.
    pub fn up_to(bytes: usize) -> Self {
        Self {
            left_bytes: bytes,
            ended: bytes == 0,
            too_large: false,
        }
    }

    /// False where nothing more is kept, whatever its size.
    pub fn keeps_more(&self) -> bool {
        !self.ended
    }

    /// Nothing may be left and still be enough.
    pub fn left_bytes(&self) -> usize {
        self.left_bytes
    }

    /// Whether so many bytes more are kept; if not, none behind them are.
    pub fn takes(&mut self, bytes: usize) -> bool {
        match self.left_bytes.checked_sub(bytes) {
            Some(left_bytes) => self.left_bytes = left_bytes,
            None => self.end(),
        }
        self.keeps_more()
    }

    /// What comes next has no room.
    pub fn end(&mut self) {
        self.too_large |= self.keeps_more();
        self.left_bytes = 0;
        self.ended = true;
    }

    /// True where somebody waits for more than may be kept.
    pub fn is_too_large(&self) -> bool {
        self.too_large
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_ends_at_the_first_that_does_not_fit() {
        let mut kept = AnswerLimit::up_to(100);
        assert!(kept.takes(60) && !kept.is_too_large());
        assert!(!kept.takes(60) && kept.is_too_large());
        assert!(!kept.takes(1) && kept.is_too_large());
        let mut exact = AnswerLimit::up_to(100);
        assert!(exact.takes(100) && exact.takes(0) && !exact.is_too_large());
        assert!(!exact.takes(1) && exact.is_too_large());
        let mut nobody = AnswerLimit::up_to(0);
        assert!(!nobody.takes(0) && !nobody.keeps_more());
        assert!(!nobody.takes(1) && !nobody.is_too_large());
    }
}
