//! What calls cost in this process: allocations and bytes that stay, counted, never timed.

const CALLS: u64 = 1_000;

/// Allocations of one call, and bytes that stay after it; each call gets its number.
pub fn cost(call: impl Fn(u64)) -> (f64, f64) {
    // What is made once is made before.
    (0..100).for_each(&call);
    let counted = allocation_counter::measure(|| (100..100 + CALLS).for_each(&call));
    let each = |all: f64| all / CALLS as f64;
    (
        each(counted.count_total as f64),
        each(counted.bytes_current as f64),
    )
}
