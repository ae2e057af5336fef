//! Where fragments wait: blocks of one size, claimed together, in chains.

use super::Bounds;
use crate::frame::Frame;
use crate::wire::Headers;

/// Names no block.
const NONE: u16 = u16::MAX;

/// What a fragment adds to its datagram.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    /// Where its data stands.
    pub(super) start: usize,
    pub(super) data: &'a [u8],
    /// Whether another part follows.
    pub(super) more: bool,
    /// Of the first part: what stands in front of its data.
    pub(super) header: &'a [u8],
}

impl<'a> Part<'a> {
    /// `None`: the packet is no fragment, or has other headers than these.
    pub(super) fn of(packet: &'a [u8], headers: &Headers) -> Option<Self> {
        let field = headers.fragment.filter(|field| field.is_part())?;
        let (header, data) = packet
            .get(..headers.total_length)?
            .split_at_checked(field.data_offset)?;
        Some(Self {
            start: field.offset,
            data,
            more: field.more,
            header: if field.offset == 0 { header } else { &[] },
        })
    }

    /// Where it ends.
    pub(super) fn end(&self) -> usize {
        self.start + self.data.len()
    }
}

/// The blocks of a datagram, in the order of their place in it.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    first: u16,
    last: u16,
    /// Where the last of them ends.
    end: usize,
}

impl Chain {
    pub(super) const EMPTY: Self = Self {
        first: NONE,
        last: NONE,
        end: 0,
    };

    /// Where what is held ends.
    pub(super) fn end(&self) -> usize {
        self.end
    }
}

/// Where a part belongs in a chain.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// In the gap behind a block, or in front of all.
    Behind(Option<u16>),
    /// Where the very same part is.
    Same,
    /// Where another part is.
    Taken,
}

/// One block: a piece of a part.
#[derive(Clone, Copy)]
struct Block {
    next: u16,
    /// Where its data stands in the datagram.
    start: usize,
    /// Bytes of data.
    length: usize,
    /// Bytes of header in front of them.
    header: usize,
    /// Whether a part begins with it.
    begins: bool,
}

impl Block {
    const VACANT: Self = Self {
        next: NONE,
        start: 0,
        length: 0,
        header: 0,
        begins: false,
    };

    fn end(&self) -> usize {
        self.start + self.length
    }
}

/// All blocks.
pub(super) struct Blocks {
    bytes: Box<[u8]>,
    blocks: Box<[Block]>,
    free: Vec<u16>,
}

impl Blocks {
    pub(super) fn new(count: u16) -> Self {
        Self {
            bytes: vec![0; usize::from(count) * Bounds::BLOCK].into_boxed_slice(),
            blocks: vec![Block::VACANT; usize::from(count)].into_boxed_slice(),
            free: (0..count).rev().collect(),
        }
    }

    pub(super) fn in_use(&self) -> usize {
        self.blocks.len() - self.free.len()
    }

    /// Finds the place of a part. What comes in order goes behind the last block at once; else as many blocks are looked
    /// at as there are, at most.
    pub(super) fn place(&self, chain: &Chain, part: &Part<'_>) -> Place {
        if chain.end <= part.start {
            return Place::Behind((chain.last != NONE).then_some(chain.last));
        }
        let mut previous = None;
        let mut index = chain.first;
        while let Some(block) = self.blocks.get(usize::from(index)) {
            if block.end() > part.start {
                if block.start >= part.end() {
                    return Place::Behind(previous);
                }
                let is_same = self.is_same(index, part);
                return if is_same { Place::Same } else { Place::Taken };
            }
            previous = Some(index);
            index = block.next;
        }
        Place::Behind(previous)
    }

    /// Whether the part that begins with a block is this one, byte by byte.
    fn is_same(&self, first: u16, part: &Part<'_>) -> bool {
        let mut rest = part.data;
        let mut index = first;
        while let Some(block) = self.blocks.get(usize::from(index)) {
            let is_first = index == first;
            if is_first && (!block.begins || block.start != part.start) {
                return false;
            }
            if !is_first && (block.begins || rest.is_empty()) {
                return rest.is_empty() && block.begins;
            }
            let Some((same, after)) = rest.split_at_checked(block.length) else {
                return false;
            };
            if same != self.data(index, block) {
                return false;
            }
            rest = after;
            index = block.next;
        }
        rest.is_empty()
    }

    /// Copies a part in, behind a block or in front of all. False, and nothing is done, when too few blocks are free.
    pub(super) fn insert(&mut self, chain: &mut Chain, behind: Option<u16>, part: &Part<'_>) -> bool {
        // A header is shorter than a block: it has at most 40 bytes and 256 of extension headers.
        let in_first = Bounds::BLOCK.saturating_sub(part.header.len());
        let needed = 1 + part.data.len().saturating_sub(in_first).div_ceil(Bounds::BLOCK);
        if in_first == 0 || self.free.len() < needed {
            return false;
        }
        let mut previous = behind;
        let mut header = part.header;
        let mut rest = part.data;
        let mut start = part.start;
        while !rest.is_empty() {
            let Some(index) = self.free.pop() else {
                return false;
            };
            let (data, after) = rest.split_at((Bounds::BLOCK - header.len()).min(rest.len()));
            let at = usize::from(index) * Bounds::BLOCK;
            self.bytes[at..at + header.len()].copy_from_slice(header);
            self.bytes[at + header.len()..at + header.len() + data.len()].copy_from_slice(data);
            let next = match previous {
                Some(previous) => std::mem::replace(&mut self.blocks[usize::from(previous)].next, index),
                None => std::mem::replace(&mut chain.first, index),
            };
            self.blocks[usize::from(index)] = Block {
                next,
                start,
                length: data.len(),
                header: header.len(),
                begins: start == part.start,
            };
            if next == NONE {
                chain.last = index;
                chain.end = start + data.len();
            }
            previous = Some(index);
            start += data.len();
            rest = after;
            header = &[];
        }
        true
    }

    /// Appends what a chain holds to a frame: headers, and the data behind them.
    pub(super) fn write(&self, chain: &Chain, out: &mut Frame) {
        let mut index = chain.first;
        while let Some(block) = self.blocks.get(usize::from(index)) {
            let at = usize::from(index) * Bounds::BLOCK;
            out.append(&self.bytes[at..at + block.header + block.length]);
            index = block.next;
        }
    }

    /// Takes the blocks of a chain back.
    pub(super) fn free(&mut self, chain: &mut Chain) {
        let mut index = chain.first;
        while let Some(block) = self.blocks.get(usize::from(index)) {
            self.free.push(index);
            index = block.next;
        }
        *chain = Chain::EMPTY;
    }

    fn data(&self, index: u16, block: &Block) -> &[u8] {
        let at = usize::from(index) * Bounds::BLOCK + block.header;
        &self.bytes[at..at + block.length]
    }
}
