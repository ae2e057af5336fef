//! A fixed number of frames, made once. An empty pool is a counted drop, never an allocation.

use super::{Frame, LARGE, SMALL};

/// How many frames of each class a pool holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSizes {
    /// Frames with room for [`SMALL`] bytes: answers, and single packets that wait.
    pub small: usize,
    /// Frames with room for [`LARGE`] bytes: super-packets. Untouched ones cost no memory.
    pub large: usize,
}

/// Frames at rest, last in first out, so that the same few stay in the cache.
pub struct FramePool {
    small: Vec<Frame>,
    large: Vec<Frame>,
    sizes: PoolSizes,
}

impl FramePool {
    /// Makes all frames.
    pub fn new(sizes: PoolSizes) -> Self {
        Self {
            small: (0..sizes.small).map(|_| Frame::with_capacity(SMALL)).collect(),
            large: (0..sizes.large).map(|_| Frame::with_capacity(LARGE)).collect(),
            sizes,
        }
    }

    /// A frame with room for `length` bytes, of the smallest class that fits and isn't empty.
    pub fn take(&mut self, length: usize) -> Option<Frame> {
        if length <= SMALL
            && let Some(frame) = self.small.pop()
        {
            return Some(frame);
        }
        if length <= LARGE { self.large.pop() } else { None }
    }

    /// A frame for a packet that waits: half of a class stays back for what passes, so that what waits for somebody who
    /// never comes stops nobody else.
    pub fn take_to_wait(&mut self, length: usize) -> Option<Frame> {
        if length <= SMALL && self.small.len() > self.sizes.small / 2 {
            return self.small.pop();
        }
        if length <= LARGE && self.large.len() > self.sizes.large / 2 {
            return self.large.pop();
        }
        None
    }

    /// A frame for a packet that passes to another shard, and comes back soon: of each class a quarter stays back, so
    /// that what waits never stops what passes.
    pub fn take_to_pass(&mut self, length: usize) -> Option<Frame> {
        if length <= SMALL && self.small.len() > self.sizes.small / 4 {
            return self.small.pop();
        }
        if length <= LARGE && self.large.len() > self.sizes.large / 4 {
            return self.large.pop();
        }
        None
    }

    /// Takes a frame back. A frame of a class that is full already (it came from elsewhere) is freed.
    pub fn recycle(&mut self, frame: Frame) {
        let (class, most) = if frame.capacity() >= LARGE {
            (&mut self.large, self.sizes.large)
        } else {
            (&mut self.small, self.sizes.small)
        };
        if class.len() < most {
            class.push(frame);
        }
    }

    /// Frames that are out.
    pub fn in_use(&self) -> usize {
        self.capacity() - self.small.len() - self.large.len()
    }

    /// Frames there are.
    pub fn capacity(&self) -> usize {
        self.sizes.small + self.sizes.large
    }
}
