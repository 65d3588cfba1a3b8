//! The stacks that calls of guests run on, one for each instance.
//!
//! The engine's own ones would do, but the kernel counts memory maps: 65,530 for
//! a process. These are mapped as the engine maps memories, so that a stack and
//! the memory beside it are one map, and so are their guards: an instance costs
//! two maps and not four.

#![allow(unsafe_code)] // The engine asks for it: it cannot check what a stack's memory is.

use std::ops::Range;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use wasmtime::{StackCreator, StackMemory};

/// See the module documentation.
pub(super) struct Stacks;

/// Some bytes of address space that are used by nobody else: the guard, at which
/// whoever runs over the stack's end is stopped, and the stack above it.
struct Stack {
    base: NonNull<u8>,
    length: usize,
    /// One page, whatever its size is on this machine.
    guard: usize,
}

// SAFETY: The memory belongs to this value alone, and is not tied to a thread.
unsafe impl Send for Stack {}
// SAFETY: A shared reference gives addresses only.
unsafe impl Sync for Stack {}

impl Stack {
    /// Maps a guard and a stack of this many bytes.
    fn map(size: usize) -> std::io::Result<Stack> {
        let guard = rustix::param::page_size();
        let length = size.next_multiple_of(guard) + guard;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: An anonymous mapping at an address of the kernel's choice touches nothing that is there.
        let base = unsafe { mmap_anonymous(null_mut(), length, ProtFlags::empty(), flags)? };
        let base = NonNull::new(base.cast()).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let stack = Stack { base, length, guard };
        // SAFETY: The range was mapped just now, and nobody knows of it yet.
        unsafe { mprotect(stack.lowest().cast(), length - guard, MprotectFlags::READ | MprotectFlags::WRITE)? };
        Ok(stack)
    }

    /// The lowest byte of the stack, above the guard.
    fn lowest(&self) -> *mut u8 {
        self.base.as_ptr().wrapping_add(self.guard)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: It was mapped by `map`, and the engine lets go of a stack when nothing runs on it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
        if let Err(error) = unmapped {
            tracing::error!("giving back a stack: {error}");
        }
    }
}

// SAFETY: `new_stack` gives fresh zeroed memory of at least the wanted size, aligned to
// pages, with a guard below it.
unsafe impl StackCreator for Stacks {
    fn new_stack(&self, size: usize, _: bool) -> Result<Box<dyn StackMemory>, wasmtime::Error> {
        Ok(Box::new(Stack::map(size).map_err(wasmtime::Error::from)?))
    }
}

// SAFETY: The ranges are those of the mapping, which lives as long as the value.
unsafe impl StackMemory for Stack {
    fn top(&self) -> *mut u8 {
        self.base.as_ptr().wrapping_add(self.length)
    }

    fn range(&self) -> Range<usize> {
        self.lowest() as usize..self.top() as usize
    }

    fn guard_range(&self) -> Range<*mut u8> {
        self.base.as_ptr()..self.lowest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_whole_pages_of_zeros_above_a_guard() {
        let stack = Stacks.new_stack(10_000, true).unwrap();
        let (guard, range, page) = (stack.guard_range(), stack.range(), rustix::param::page_size());
        assert_eq!(guard.end as usize, range.start);
        assert_eq!(stack.top() as usize, range.end);
        assert!(range.len() >= 10_000 && range.start.is_multiple_of(page) && range.end.is_multiple_of(page));
        // SAFETY: These bytes are the test's own.
        let bytes = unsafe { std::slice::from_raw_parts_mut(range.start as *mut u8, range.len()) };
        assert!(bytes.iter().all(|byte| *byte == 0));
        bytes.fill(1);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let holds = |line: &&str, address: usize| {
            let (from, rest) = line.split_once('-').unwrap();
            let number = |text: &str| usize::from_str_radix(text, 16).unwrap();
            (number(from)..number(rest.split(' ').next().unwrap())).contains(&address)
        };
        let guarded = maps.lines().find(|line| holds(line, guard.start as usize)).unwrap();
        assert!(guarded.contains(" ---p "), "{guarded}");
    }
}
