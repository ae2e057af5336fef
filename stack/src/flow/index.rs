//! The index of the flow table: open addressing, of one size from the beginning.
//!
//! A general hash table asks for a word of control, then for an entry, then for the key behind it, and each waits for the
//! one before. Here the first cell holds enough of the hash to go straight for the key, and a batch asks for all its first
//! cells before it looks at any. Removing leaves no graves: what stands behind moves up (Knuth, The Art of Computer
//! Programming, volume 3, §6.4, algorithm R).

/// Slots by the hashes of their keys.
pub(super) struct Index {
    /// The hash in the upper half, and the slot's number plus one in the lower one; 0: nothing.
    cells: Box<[u64]>,
}

impl Index {
    /// An index of `capacity` slots, of which no more may be in it at once. At most half of its cells are taken.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            cells: vec![0; Self::cells(capacity)].into(),
        }
    }

    fn cells(capacity: usize) -> usize {
        (2 * capacity.max(1)).next_power_of_two()
    }

    /// Memory that it takes, in bytes.
    pub(super) fn bytes(capacity: usize) -> usize {
        Self::cells(capacity) * size_of::<u64>()
    }

    /// Where a hash's cell is, if no other one has taken it.
    fn home(&self, hash: u32) -> usize {
        hash as usize & (self.cells.len() - 1)
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.cells.len() - 1)
    }

    fn cell(&self, at: usize) -> u64 {
        self.cells.get(at).copied().unwrap_or(0)
    }

    /// The slot in the first cell of a hash, if its hash is the same: most often the one that is sought.
    #[inline]
    pub(super) fn first(&self, hash: u32) -> Option<u32> {
        Self::slot_of(self.cell(self.home(hash)), hash)
    }

    fn slot_of(cell: u64, hash: u32) -> Option<u32> {
        (cell != 0 && (cell >> 32) as u32 == hash).then_some((cell as u32).wrapping_sub(1))
    }

    /// The slot of a hash that `is_it`.
    #[inline]
    pub(super) fn find(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let at = self.position(hash, is_it)?;
        Self::slot_of(self.cell(at), hash)
    }

    #[inline]
    fn position(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        let mut at = self.home(hash);
        for _ in 0..self.cells.len() {
            let cell = self.cell(at);
            if cell == 0 {
                return None;
            }
            if Self::slot_of(cell, hash).is_some_and(&is_it) {
                return Some(at);
            }
            at = self.next(at);
        }
        None
    }

    /// Puts a slot in that isn't there; false when there is no room.
    pub(super) fn insert(&mut self, hash: u32, slot: u32) -> bool {
        let mut at = self.home(hash);
        for _ in 0..self.cells.len() {
            let next = self.next(at);
            match self.cells.get_mut(at) {
                Some(cell) if *cell == 0 => {
                    *cell = (u64::from(hash) << 32) | (u64::from(slot) + 1);
                    return true;
                }
                Some(_) | None => at = next,
            }
        }
        false
    }

    /// Takes a slot out.
    pub(super) fn remove(&mut self, hash: u32, slot: u32) {
        let Some(mut gap) = self.position(hash, |found| found == slot) else {
            return;
        };
        let mask = self.cells.len() - 1;
        let mut at = gap;
        for _ in 0..self.cells.len() {
            at = self.next(at);
            let cell = self.cell(at);
            if cell == 0 {
                break;
            }
            // It moves up if its home isn't behind the gap.
            let home = self.home((cell >> 32) as u32);
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(gap) & mask {
                self.put(gap, cell);
                gap = at;
            }
        }
        self.put(gap, 0);
    }

    fn put(&mut self, at: usize, cell: u64) {
        if let Some(place) = self.cells.get_mut(at) {
            *place = cell;
        }
    }

    /// Slots in it.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.cells.iter().filter(|cell| **cell != 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn what_is_put_in_is_found_until_it_is_taken_out(deeds in prop::collection::vec((any::<bool>(), 0..24_u32), 0..300)) {
            const CAPACITY: usize = 16;
            // Few hashes, some at the end of the cells: they get into each other's way, and go round.
            let hash = |slot: u32| if slot.is_multiple_of(5) { slot << 8 } else { 28 + slot % 3 + ((slot % 2) << 9) };
            let mut index = Index::new(CAPACITY);
            let mut model = BTreeMap::new();
            for (adds, slot) in deeds {
                if !adds {
                    index.remove(hash(slot), slot);
                    model.remove(&slot);
                } else if model.len() < CAPACITY && !model.contains_key(&slot) {
                    prop_assert!(index.insert(hash(slot), slot));
                    model.insert(slot, ());
                }
                for slot in 0..24 {
                    let found = index.find(hash(slot), |found| found == slot);
                    prop_assert_eq!(found.is_some(), model.contains_key(&slot));
                }
                prop_assert_eq!(index.len(), model.len());
            }
        }
    }

    #[test]
    fn an_index_that_is_full_ends_its_search() {
        let mut index = Index::new(1);
        assert!(index.insert(7, 0) && index.insert(7, 1));
        assert!(!index.insert(7, 2));
        assert_eq!(index.find(7, |_| false), None);
        index.remove(7, 5);
        assert_eq!(index.len(), 2);
    }
}
