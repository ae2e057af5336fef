//! What is asked of the world beyond.

use super::PAYLOAD;
use super::message::{CLASS_INTERNET, HEADER, Header, OPT, flags, plain_name};
use super::query::Query;
use crate::snapshot::zone::{LONGEST_NAME, Name};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A name and a type; the class is the internet's. Two that differ in the case of letters are one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Spelled", into = "Spelled")]
pub struct Question {
    name: Name,
    kind: u16,
}

/// A question is no name and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no name of DNS: labels of 1 to 63 bytes behind their lengths, 255 bytes in all, the root last")]
pub struct IllegalName;

/// A question as it is told to other processes.
#[derive(Serialize, Deserialize)]
struct Spelled {
    name: Vec<u8>,
    #[serde(rename = "type")]
    kind: u16,
}

impl TryFrom<Spelled> for Question {
    type Error = IllegalName;

    fn try_from(spelled: Spelled) -> Result<Self, IllegalName> {
        Self::new(&spelled.name, spelled.kind).ok_or(IllegalName)
    }
}

impl From<Question> for Spelled {
    fn from(question: Question) -> Self {
        Self {
            name: question.name.into_vec(),
            kind: question.kind,
        }
    }
}

impl Question {
    /// Longest query that [`Question::query`] makes.
    pub const LONGEST_QUERY: usize = HEADER + LONGEST_NAME + 4 + 11;

    /// A question about a name as it stands in messages; `None` when it is none, or something stands behind it.
    pub fn new(name: &[u8], kind: u16) -> Option<Self> {
        let (length, _) = plain_name(name)?;
        (length == name.len()).then(|| Self {
            name: name.to_ascii_lowercase().into_boxed_slice(),
            kind,
        })
    }

    /// What a message asks; `None` when it is no query with one question.
    pub fn of_message(message: &[u8]) -> Option<Self> {
        Query::parse(message).ok().map(|query| Self::of(&query))
    }

    /// What a query asks.
    pub fn of(query: &Query<'_>) -> Self {
        Self {
            name: query.name.to_ascii_lowercase().into_boxed_slice(),
            kind: query.kind,
        }
    }

    /// The name as it stands in messages, in lower case.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The type (IANA: Domain Name System Parameters).
    pub fn kind(&self) -> u16 {
        self.kind
    }

    /// Whether the name is `domain`, as it stands in messages in lower case, or below it.
    pub fn is_within(&self, domain: &[u8]) -> bool {
        let mut rest: &[u8] = &self.name;
        loop {
            if rest == domain {
                return true;
            }
            match crate::snapshot::zone::skip_labels(rest, 1) {
                Some(above) => rest = above,
                None => return false,
            }
        }
    }

    /// The query that an upstream is asked: recursion desired, with EDNS unless the upstream doesn't understand it, no
    /// signatures. Which letters are capitals is drawn by `case`, bit by bit: whoever forges an answer has to guess them,
    /// too (draft-vixie-dnsext-dns0x20).
    pub fn query(&self, id: u16, case: [u8; 32], edns: bool) -> Vec<u8> {
        let mut message = vec![0; HEADER];
        Header {
            id,
            flags: flags::RECURSION_DESIRED,
            questions: 1,
            answers: 0,
            authorities: 0,
            additionals: u16::from(edns),
        }
        .write(&mut message);
        let draws = case
            .iter()
            .flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
        let drawn = self.name.iter().zip(draws).map(|(byte, capital)| {
            // Lengths of labels are below 64, and no letters.
            if capital { byte.to_ascii_uppercase() } else { *byte }
        });
        message.extend(drawn);
        message.extend(self.kind.to_be_bytes());
        message.extend(CLASS_INTERNET.to_be_bytes());
        if edns {
            message.push(0);
            message.extend(OPT.to_be_bytes());
            message.extend(PAYLOAD.to_be_bytes());
            message.extend([0; 6]);
        }
        message
    }
}

/// As in master files (RFC 1035 §5.1): what isn't printable is written `\DDD`.
impl fmt::Display for Question {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest: &[u8] = &self.name;
        if rest == [0] {
            formatter.write_str(".")?;
        }
        while let Some((length, behind)) = rest.split_first().filter(|(length, _)| **length > 0) {
            let (label, behind) = behind.split_at(usize::from(*length).min(behind.len()));
            for byte in label {
                match byte {
                    b'.' | b'\\' => write!(formatter, "\\{}", char::from(*byte))?,
                    0x21..=0x7e => write!(formatter, "{}", char::from(*byte))?,
                    _ => write!(formatter, "\\{byte:03}")?,
                }
            }
            formatter.write_str(".")?;
            rest = behind;
        }
        match super::message::kind_label(self.kind) {
            Some(label) => write!(formatter, " {label}"),
            None => write!(formatter, " TYPE{}", self.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::responder::dns::tests::name_of;

    fn question(name: &str, kind: u16) -> Question {
        Question::new(&name_of(name), kind).unwrap()
    }

    #[test]
    fn a_question_is_the_same_in_any_case_and_through_json() {
        let asked = question("Shop.Example", 1);
        assert_eq!(asked, question("shop.example", 1));
        assert_ne!(asked, question("shop.example", 28));
        assert_eq!(asked.to_string(), "shop.example. A");
        assert_eq!(question("", 65_280).to_string(), ". TYPE65280");
        assert_eq!(question("a\\b c", 16).to_string(), "a\\\\b\\032c. TXT");
        let json = serde_json::to_string(&asked).unwrap();
        assert_eq!(serde_json::from_str::<Question>(&json).unwrap(), asked);
        let error = serde_json::from_str::<Question>(r#"{"name":[3,97],"type":1}"#).unwrap_err();
        assert!(error.to_string().starts_with("no name of DNS"), "{error}");
    }

    #[test]
    fn a_name_is_within_itself_and_what_is_above_it_by_whole_labels() {
        let asked = question("a.corp.example", 1);
        for (domain, within) in [
            ("a.corp.example", true),
            ("corp.example", true),
            ("", true),
            ("orp.example", false),
            ("b.a.corp.example", false),
        ] {
            assert_eq!(asked.is_within(&name_of(domain)), within, "{domain}");
        }
    }

    #[test]
    fn a_query_asks_in_the_case_that_was_drawn() {
        let asked = question("abc.de", 28);
        assert_eq!(
            asked.query(0x1234, [0b0101_1010; 32], true),
            b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\x03AbC\x02dE\0\0\x1c\0\x01\0\0\x29\x04\xd0\0\0\0\0\0\0"
        );
        let longest = question(
            &[["a".repeat(63).as_str(); 3].join("."), "b".repeat(61)].join("."),
            1,
        );
        let query = longest.query(0, [0xff; 32], true);
        assert_eq!(query.len(), Question::LONGEST_QUERY);
        assert!(!query[13..].contains(&b'a') && !query[13..].contains(&b'b'));
        assert_eq!(
            longest.query(0, [0; 32], false).len(),
            Question::LONGEST_QUERY - 11
        );
    }
}
