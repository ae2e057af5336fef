//! What a device carries: tcpdump's file, read packet by packet.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{Lab, Running, wait_until};

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Running,
    file: PathBuf,
}

/// A captured packet, from its link layer on.
#[derive(Clone, Debug)]
pub struct Packet(pub Vec<u8>);

impl Capture {
    pub(crate) fn start(
        lab: &Lab,
        part: &str,
        device: &str,
        options: &[&str],
        file: PathBuf,
    ) -> Result<Self> {
        let path = file.display().to_string();
        // The buffer holds all that comes while the machine is busy with other things. Without immediate mode the
        // kernel hands packets out in blocks, and those of a block that isn't full yet would not be seen at all.
        let fixed = [
            "tcpdump",
            "--immediate-mode",
            "-n",
            "-U",
            "-B",
            "65536",
            "-Z",
            "root",
            "-i",
            device,
            "-w",
            &path,
        ];
        let words: Vec<&str> = fixed.iter().chain(options).copied().collect();
        let tcpdump = lab.start(part, &words)?;
        wait_until("tcpdump listens", Duration::from_secs(10), || {
            Ok(tcpdump.printed()?.contains("listening on"))
        })?;
        Ok(Self { tcpdump, file })
    }

    /// Ends it, and reads what it saw.
    ///
    /// # Errors
    /// When tcpdump had to drop packets, or its file is damaged.
    pub fn finish(self) -> Result<Vec<Packet>> {
        // What is under way is still to be seen.
        std::thread::sleep(Duration::from_millis(500));
        let said = self.tcpdump.interrupt()?;
        ensure!(
            said.contains("0 packets dropped by kernel"),
            "tcpdump missed packets: {said}"
        );
        let bytes = fs::read(&self.file).with_context(|| format!("reading {}", self.file.display()))?;
        parse(&bytes).with_context(|| format!("{} isn't a pcap file", self.file.display()))
    }
}

impl Packet {
    /// Whether it contains the bytes anywhere.
    pub fn contains(&self, needle: &[u8]) -> bool {
        self.0.windows(needle.len()).any(|window| window == needle)
    }

    /// The EtherType of an Ethernet frame.
    pub fn ethertype(&self) -> Option<u16> {
        self.big_endian(12)
    }

    /// Two bytes at an offset.
    pub fn big_endian(&self, offset: usize) -> Option<u16> {
        let bytes = self.0.get(offset..offset + 2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    }

    /// One byte at an offset.
    pub fn byte(&self, offset: usize) -> Option<u8> {
        self.0.get(offset).copied()
    }
}

/// The classic format: a header of 24 bytes, then 16 bytes before each packet; little-endian, as tcpdump writes here.
fn parse(bytes: &[u8]) -> Result<Vec<Packet>> {
    const HEADER: usize = 24;
    const RECORD: usize = 16;
    ensure!(
        bytes.get(..4) == Some(&[0xd4, 0xc3, 0xb2, 0xa1]),
        "no magic number"
    );
    let mut packets = Vec::new();
    let mut rest = bytes.get(HEADER..).context("no header")?;
    while let Some(record) = rest.get(..RECORD) {
        let length = record
            .get(8..12)
            .and_then(|length| length.try_into().ok())
            .map(u32::from_le_bytes);
        let length = usize::try_from(length.context("no length")?)?;
        let packet = rest
            .get(RECORD..RECORD + length)
            .context("cut in the middle of a packet")?;
        packets.push(Packet(packet.to_vec()));
        rest = rest.get(RECORD + length..).unwrap_or_default();
    }
    Ok(packets)
}
