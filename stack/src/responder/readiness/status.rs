//! What an answer to a question says.

use serde::{Deserialize, Serialize};

/// Why an instance isn't ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeError {
    /// Nothing came back in time: the interface is down, or a filter inside drops it.
    #[error("it doesn't answer")]
    Silent,
    /// The connection was refused: nothing listens there.
    #[error("it refuses the connection")]
    Refused,
    /// The connection ended before there was a status.
    #[error("it ends the connection without an answer")]
    Ended,
    /// It took the connection, and no status came in time.
    #[error("it takes the connection, and answers nothing in time")]
    NoStatus,
    /// What it answered isn't HTTP.
    #[error("its answer isn't HTTP")]
    NotHttp,
    /// It answered a status outside of 200 to 399.
    #[error("it answers with HTTP status {0}")]
    Status(u16),
}

/// How far the beginning of an answer tells its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Not yet.
    Unfinished,
    /// The final status.
    Status(u16),
    /// It never will: it isn't HTTP.
    NotHttp,
}

/// `HTTP/1.1 200`, digits as `d`, and what must follow as `|` (RFC 9112 §4).
const STATUS_LINE: &[u8; 13] = b"HTTP/1.d ddd|";

/// The status that an answer begins with; interim ones (RFC 9110 §15.2) are passed over.
pub(super) fn read(mut head: &[u8]) -> Head {
    loop {
        let known = head.get(..STATUS_LINE.len()).unwrap_or(head);
        if !STATUS_LINE
            .iter()
            .zip(known)
            .all(|(form, byte)| has_form(*form, *byte))
        {
            return Head::NotHttp;
        }
        if known.len() < STATUS_LINE.len() {
            return Head::Unfinished;
        }
        let digits = known.get(9..12).unwrap_or_default();
        let status = digits
            .iter()
            .fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
        if status >= 200 {
            return Head::Status(status);
        }
        if status < 100 {
            return Head::NotHttp;
        }
        let end = head.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        match end.and_then(|end| head.get(end + 4..)) {
            Some(rest) => head = rest,
            None => return Head::Unfinished,
        }
    }
}

/// Behind the status there is a space, or the line ends at once.
fn has_form(form: u8, byte: u8) -> bool {
    match form {
        b'd' => byte.is_ascii_digit(),
        b'|' => matches!(byte, b' ' | b'\r' | b'\n'),
        form => form == byte,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_status_is_found_as_soon_as_it_is_there() {
        assert_eq!(read(b""), Head::Unfinished);
        assert_eq!(read(b"HTTP/1.1 20"), Head::Unfinished);
        assert_eq!(read(b"HTTP/1.1 200 "), Head::Status(200));
        assert_eq!(read(b"HTTP/1.0 503 Service Unavailable\r\n"), Head::Status(503));
        assert_eq!(read(b"HTTP/1.1 204\r\nServer: x\r\n"), Head::Status(204));
        assert_eq!(read(b"HTTP/1.1 404\n"), Head::Status(404));
    }

    #[test]
    fn interim_answers_are_passed_over() {
        let early = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        assert_eq!(read(early), Head::Unfinished);
        assert_eq!(
            read(&[early, &b"HTTP/1.1 302 Found\r\n"[..]].concat()),
            Head::Status(302)
        );
        assert_eq!(read(b"HTTP/1.1 100 Continue\r\nnever ends"), Head::Unfinished);
    }

    #[test]
    fn what_isnt_http_is_told_by_the_first_byte_that_differs() {
        for other in [
            &b"SSH-2.0-OpenSSH_9.9\r\n"[..],
            b"HTTP/2 200",
            b"HTTP/1.1  200",
            b"HTTP/1.1 2000 ",
            b"HTTP/1.1 000 ",
            b"HTTP/1.1 20x",
            b"\0",
        ] {
            assert_eq!(read(other), Head::NotHttp, "{other:?}");
        }
    }
}
