//! How a message of any size crosses a socket that bounds messages: what doesn't fit travels in a sealed memfd beside
//! the word [`LARGE`].

use crate::sys::memfd;
use crate::sys::seqpacket::{MAX_BYTES, Message};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::os::fd::OwnedFd;

/// Stands for a message whose JSON is in the memfd beside it. It is no JSON itself.
const LARGE: &[u8] = b"large";
/// A message and the memfd beside it, ready to be sent.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() <= MAX_BYTES {
        return Ok((bytes, None));
    }
    Ok((LARGE.to_vec(), Some(memfd::seal("tidegate-message", &bytes)?)))
}

/// A message as it arrived, and the descriptors that belong to it.
pub(crate) fn decode<T: DeserializeOwned>(message: Message) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut descriptors = message.descriptors;
    if message.bytes != LARGE {
        return Ok((serde_json::from_slice(&message.bytes)?, descriptors));
    }
    if descriptors.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a large message came without its memory file",
        ));
    }
    let bytes = memfd::read_sealed(descriptors.remove(0))?;
    Ok((serde_json::from_slice(&bytes)?, descriptors))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::seqpacket::Connection;
    use std::os::fd::AsFd as _;

    #[test]
    fn a_large_message_travels_in_a_memory_file() {
        let (near, far) = Connection::pair().unwrap();
        for lines in [1, 10_000] {
            let message = vec!["a line that says what is wrong".to_owned(); lines];
            let (bytes, large) = encode(&message).unwrap();
            assert_eq!(large.is_some(), lines > 1);
            let descriptors: Vec<_> = large.iter().map(|descriptor| descriptor.as_fd()).collect();
            near.send(&bytes, &descriptors).unwrap();
            let (decoded, rest) = decode::<Vec<String>>(far.receive().unwrap().unwrap()).unwrap();
            assert!(rest.is_empty());
            assert_eq!(decoded, message);
        }
    }
}
