//! One lazily built value per type, found without a lock: tables, and whatever fits no table.

use std::any::Any;
use std::sync::OnceLock;

use super::size::Size;

/// The bounds that a part is built with.
#[derive(Clone, Copy, Debug)]
pub struct PartSetup {
    /// The most entries of one table.
    pub max_entries: usize,
    /// The most bytes of one table.
    pub max_bytes: usize,
}

/// Something that lives once in each [`MemoryStore`](super::MemoryStore), built at first use.
pub trait Part: Send + Sync + 'static {
    /// Builds it, empty.
    fn build(setup: &PartSetup) -> Self;

    /// Says what it holds; nothing unless it is a table.
    fn size(&self, now: u64) -> Size {
        let _ = now;
        Size::default()
    }
}

/// A list that only grows: a look-up is a few pointer steps, and never waits once the part is there.
#[derive(Default)]
pub(super) struct Parts {
    first: OnceLock<Box<Node>>,
}

struct Node {
    part: Box<dyn Any + Send + Sync>,
    size: fn(&(dyn Any + Send + Sync), u64) -> Size,
    next: OnceLock<Box<Node>>,
}

impl Parts {
    pub(super) fn get<P: Part>(&self, setup: &PartSetup) -> &P {
        let mut link = &self.first;
        loop {
            let node = link.get_or_init(|| {
                Box::new(Node {
                    part: Box::new(P::build(setup)),
                    size: |part, now| match part.downcast_ref::<P>() {
                        Some(part) => part.size(now),
                        None => Size::default(),
                    },
                    next: OnceLock::new(),
                })
            });
            match node.part.downcast_ref() {
                Some(part) => return part,
                None => link = &node.next,
            }
        }
    }

    /// Sums up what all parts hold.
    pub(super) fn size(&self, now: u64) -> Size {
        let (mut whole, mut link) = (Size::default(), &self.first);
        while let Some(node) = link.get() {
            whole += (node.size)(node.part.as_ref(), now);
            link = &node.next;
        }
        whole
    }
}
