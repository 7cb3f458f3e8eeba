//! The rows of a shard, dense, in pieces of one size: growing copies nothing and leaves at most one piece empty.

use std::ops::{Index, IndexMut};

/// Rows of one piece.
const PIECE: usize = 64;
/// A first piece has room for so many rows to begin with.
const FIRST: usize = 4;

/// A list that grows and shrinks at its end.
pub(super) struct Rows<T> {
    pieces: Vec<Vec<T>>,
    length: usize,
}

impl<T> Rows<T> {
    pub(super) const fn new() -> Self {
        Self {
            pieces: Vec::new(),
            length: 0,
        }
    }

    pub(super) const fn len(&self) -> usize {
        self.length
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.pieces.first()?.first()
    }

    pub(super) fn push(&mut self, row: T) {
        let at = self.length / PIECE;
        if at == self.pieces.len() {
            let room = if at == 0 { FIRST } else { PIECE };
            self.pieces.push(Vec::with_capacity(room));
        }
        let piece = &mut self.pieces[at];
        if piece.len() == piece.capacity() {
            piece.reserve_exact(piece.len().min(PIECE - piece.len()));
        }
        piece.push(row);
        self.length += 1;
    }

    /// Takes a row out; the last one moves into its place.
    pub(super) fn swap_remove(&mut self, at: usize) -> T {
        let last = self.length - 1;
        let moved = self.pieces[last / PIECE].swap_remove(last % PIECE);
        self.length = last;
        self.give_back();
        if at == last {
            moved
        } else {
            std::mem::replace(&mut self[at], moved)
        }
    }

    /// Drops a piece that is empty, once the one before it is half empty: who comes and goes at its edge pays for none.
    fn give_back(&mut self) {
        if self.length + PIECE / 2 <= self.pieces.len().saturating_sub(1) * PIECE
            && self.pieces.last().is_some_and(Vec::is_empty)
        {
            self.pieces.pop();
        }
    }
}

impl<T> Index<usize> for Rows<T> {
    type Output = T;

    #[inline]
    fn index(&self, at: usize) -> &T {
        &self.pieces[at / PIECE][at % PIECE]
    }
}

impl<T> IndexMut<usize> for Rows<T> {
    #[inline]
    fn index_mut(&mut self, at: usize) -> &mut T {
        &mut self.pieces[at / PIECE][at % PIECE]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_what_a_plain_list_would_be(steps in prop::collection::vec((0_u8..5, any::<usize>()), 0..600)) {
            let (mut rows, mut plain) = (Rows::new(), Vec::new());
            for (step, number) in steps {
                if step > 0 {
                    rows.push(number);
                    plain.push(number);
                } else if !plain.is_empty() {
                    let at = number % plain.len();
                    prop_assert_eq!(rows.swap_remove(at), plain.swap_remove(at));
                }
                prop_assert_eq!((rows.len(), rows.first()), (plain.len(), plain.first()));
            }
            prop_assert!((0..plain.len()).all(|at| rows[at] == plain[at]));
        }
    }

    #[test]
    fn growing_moves_no_row_of_a_full_piece_and_leaves_one_piece_empty_at_most() {
        let mut rows = Rows::new();
        (0..PIECE).for_each(|n| rows.push(n));
        let first = &raw const rows[0];
        (PIECE..1_000).for_each(|n| rows.push(n));
        assert_eq!(first, &raw const rows[0]);
        let room = |rows: &Rows<usize>| rows.pieces.iter().map(Vec::capacity).sum::<usize>();
        assert!(room(&rows) < 1_000 + PIECE, "{}", room(&rows));
        while rows.len() > 100 {
            let last = rows.len() - 1;
            assert_eq!(rows.swap_remove(last), last);
            assert!(room(&rows) < rows.len() + 2 * PIECE, "{}", room(&rows));
        }
    }

    #[test]
    fn few_rows_take_little_room() {
        let mut rows = Rows::new();
        rows.push(1);
        assert_eq!(rows.pieces[0].capacity(), FIRST);
        (0..FIRST).for_each(|n| rows.push(n));
        assert_eq!(rows.pieces[0].capacity(), 2 * FIRST);
    }
}
