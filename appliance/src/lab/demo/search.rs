//! Needles in frames: random markers, and texts that nobody should read.
//!
//! A marker is looked for inside single frames: whoever sends them takes care that none is cut in two.

use std::collections::HashSet;

/// The length of a marker: long enough that chance never makes one.
pub(super) const MARKER: usize = 16;

/// One marker.
pub(super) type Marker = [u8; MARKER];

/// What to look for, and what was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Search {
    markers: HashSet<Marker>,
    texts: Vec<String>,
    found: HashSet<Marker>,
    texts_found: HashSet<String>,
}

impl Search {
    /// For these markers and texts.
    pub(super) fn new(markers: &[Marker], texts: &[String]) -> Self {
        Self {
            markers: markers.iter().copied().collect(),
            texts: texts.to_vec(),
            ..Self::default()
        }
    }

    /// Looks through some bytes for markers and texts.
    pub(super) fn look(&mut self, bytes: &[u8]) {
        for window in bytes.windows(MARKER) {
            // The set knows the window's bytes as they are: no marker is copied that isn't one.
            if let Some(marker) = self.markers.get(window) {
                self.found.insert(*marker);
            }
        }
        self.look_for_texts(bytes);
    }

    /// Looks through some bytes for texts alone.
    pub(super) fn look_for_texts(&mut self, bytes: &[u8]) {
        for text in &self.texts {
            if !self.texts_found.contains(text) && holds(bytes, text.as_bytes()) {
                self.texts_found.insert(text.clone());
            }
        }
    }

    /// How many different markers were found.
    pub(super) fn markers_found(&self) -> usize {
        self.found.len()
    }

    /// The texts that were found, in order.
    pub(super) fn texts_found(&self) -> Vec<String> {
        let mut texts: Vec<String> = self.texts_found.iter().cloned().collect();
        texts.sort();
        texts
    }
}

/// Whether some bytes hold a needle that isn't empty.
pub(super) fn holds(bytes: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && bytes.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_and_texts_are_found_anywhere_in_a_frame_and_counted_once() {
        let (a, b) = ([7; MARKER], *b"0123456789abcdef");
        let mut search = Search::new(&[a, b], &["shop/web-1".to_owned(), "historian".to_owned()]);
        let frame = [&[0; 5][..], &b, b"for shop/web-1.", &b].concat();
        search.look(&frame);
        search.look(&frame);
        search.look(&[7; MARKER - 1]);
        assert_eq!(search.markers_found(), 1);
        assert_eq!(search.texts_found(), ["shop/web-1"]);
    }
}
