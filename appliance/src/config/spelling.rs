//! Which word was meant.

/// The legal word that a wrong one was probably meant to be: at most a third of its letters (and one) are off.
pub(super) fn nearest<'w>(wrong: &str, legal: &[&'w str]) -> Option<&'w str> {
    let nearest = legal.iter().map(|word| (distance(wrong, word), *word)).min()?;
    (nearest.0 <= 1 + wrong.chars().count().min(64) / 3).then_some(nearest.1)
}

/// How many letters must be put in, taken out, replaced or swapped with their neighbour to make one word of the
/// other (optimal string alignment). Underscores count as hyphens, capitals as small letters.
fn distance(left: &str, right: &str) -> usize {
    // A key longer than this resembles none of ours, and must not cost the square of its length.
    let letters = |word: &str| -> Vec<char> {
        let same = |letter: char| {
            if letter == '_' {
                '-'
            } else {
                letter.to_ascii_lowercase()
            }
        };
        word.chars().take(64).map(same).collect()
    };
    let (left, right) = (letters(left), letters(right));
    let mut rows = vec![(0..=right.len()).collect::<Vec<_>>()];
    for row in 1..=left.len() {
        let mut current = vec![row];
        for column in 1..=right.len() {
            let replaced = rows[row - 1][column - 1] + usize::from(left[row - 1] != right[column - 1]);
            let mut best = replaced
                .min(rows[row - 1][column] + 1)
                .min(current[column - 1] + 1);
            let crossed = row > 1
                && column > 1
                && left[row - 1] == right[column - 2]
                && left[row - 2] == right[column - 1];
            if crossed {
                best = best.min(rows[row - 2][column - 2] + 1);
            }
            current.push(best);
        }
        rows.push(current);
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_key_that_was_meant() {
        let legal = ["wireguard-port", "interface", "peers", "foreign-private-key-file"];
        assert_eq!(nearest("wiregaurd-port", &legal), Some("wireguard-port"));
        assert_eq!(nearest("Wireguard_Port", &legal), Some("wireguard-port"));
        assert_eq!(nearest("peer", &legal), Some("peers"));
        assert_eq!(nearest("dns", &legal), None);
        assert_eq!(nearest(&"x".repeat(100_000), &legal), None);
    }
}
