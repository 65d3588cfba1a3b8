//! How the C library gives memory back to the system.

/// From this size on an allocation is a mapping of its own, and so much may lie unused in an arena.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: i32 = 1 << 20;

/// Lets glibc keep little. By itself it goes by the largest buffer that was ever
/// freed: after a driver's code of 12 MB each of its arenas, 8 for a processor,
/// keeps up to 24 MB for good.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub fn keep_little() {
    // SAFETY: it only sets two numbers of the allocator, before any thread is started.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}

/// Other libraries have their own ways.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_little() {}
