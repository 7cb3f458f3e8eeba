//! What the table promises.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;

use crate::backend::memory::{Entry, Full, MemoryStore, Table};

#[derive(Clone, Debug, PartialEq)]
struct Kept {
    bytes: usize,
    rank: Option<u64>,
}

impl Entry for Kept {
    fn weight(&self) -> usize {
        self.bytes
    }

    fn eviction_rank(&self, _now: u64) -> Option<u64> {
        self.rank
    }
}

const fn kept(bytes: usize) -> Kept {
    Kept { bytes, rank: None }
}

fn key(store: &MemoryStore, n: u64) -> super::EntryKey {
    store.hash(|hasher| hasher.num(n))
}

#[test]
fn at_exactly_its_expiry_an_entry_is_gone() {
    let store = MemoryStore::new();
    let (table, key) = (store.table::<Kept>(), key(&store, 1));
    table
        .update_one(key, 10, |slot| slot.set(kept(1), 20))
        .unwrap();
    assert!(table.update_one(key, 19, |slot| slot.get().is_some()));
    assert!(table.update_one(key, 20, |slot| slot.get().is_none()
        && slot.get_mut().is_none()));
    assert_eq!(table.update_one(key, 20, |slot| slot.remove()), None);
    assert_eq!((table.entries(), table.bytes()), (0, 0));
}

/// A caller may catch the panic of its step; what the step had done by then is counted.
#[test]
fn a_step_that_panics_leaves_the_account_right() {
    let store = MemoryStore::new();
    let table = Table::<Kept>::bounded(4, 100_000);
    let caught = |step: &dyn Fn()| {
        let step = std::panic::AssertUnwindSafe(step);
        assert!(std::panic::catch_unwind(step).is_err());
    };
    for round in 1..=10_usize {
        let keys = [key(&store, 1)];
        caught(&|| {
            table.update_one(keys[0], 10, |slot| {
                slot.set(kept(8), 100).unwrap();
                slot.reserve(round).unwrap();
                slot.get_mut().unwrap().bytes = 8 + round;
                panic!("on purpose");
            });
        });
        caught(&|| {
            table.update(&keys, 10, |slots| {
                slots.reserve(0, 50).unwrap();
                panic!("on purpose");
            });
        });
        assert_eq!(table.entries(), 1);
    }
    caught(&|| {
        let written = || panic!("on purpose");
        let _ = table.set_absent(key(&store, 2), 10, (kept(1), 100), written);
    });
    assert_eq!(table.entries(), 2);
    let full = table.bytes();
    let other = Table::<Kept>::bounded(4, 100_000);
    for (n, bytes) in [(1, 18), (2, 1)] {
        let put = |slot: &mut super::Slot<'_, Kept>| slot.set(kept(bytes), 100);
        other.update_one(key(&store, n), 10, put).unwrap();
    }
    assert_eq!(full, other.bytes(), "as if nothing had panicked");
    let put = |slot: &mut super::Slot<'_, Kept>| slot.set(kept(1), 100);
    table.update_one(key(&store, 3), 10, put).unwrap();
}

#[test]
fn what_is_said_to_be_gone_is_removed_from_its_shard_and_the_rest_is_still_found() {
    let store = MemoryStore::new();
    let table = store.table::<Kept>();
    for n in 0..1_000_usize {
        let expires_at = if n % 10 == 0 { 20 } else { 100 };
        let put = |slot: &mut super::Slot<'_, Kept>| slot.set(kept(n % 3), expires_at);
        table.update_one(key(&store, n as u64), 10, put).unwrap();
    }
    let is_gone = |kept: &Kept| kept.bytes == 0;
    let removed = (0..table.shards()).map(|shard| table.remove_where(shard, 20, is_gone));
    // Of every third, those whose time was over are removed too, and not counted.
    let live = (0..1_000).filter(|n| n % 3 == 0 && n % 10 != 0).count() as u64;
    assert_eq!(removed.map(|live| live.unwrap()).sum::<u64>(), live);
    assert_eq!(table.remove_where(table.shards(), 20, is_gone), None);
    assert_eq!(table.entries(), (0..1_000).filter(|n| n % 3 != 0).count());
    for n in 0..1_000_usize {
        let found = table.read_one(key(&store, n as u64), 10, |kept| kept.cloned());
        assert_eq!(found, (n % 3 != 0).then(|| kept(n % 3)), "{n}");
    }
}

#[test]
fn a_full_table_drops_what_expired_then_evicts_the_readiest_then_refuses() {
    let store = MemoryStore::builder().max_entries(3).build();
    let table = store.table::<Kept>();
    let put = |n: u64, rank, expires_at, now| {
        table.update_one(key(&store, n), now, |slot| {
            slot.set(Kept { bytes: 1, rank }, expires_at)
        })
    };
    put(1, None, 10, 0).unwrap();
    put(2, Some(5), 100, 0).unwrap();
    put(3, Some(9), 100, 0).unwrap();
    put(4, None, 100, 10).unwrap();
    let there = |n| table.update_one(key(&store, n), 10, |slot| slot.get().is_some());
    assert_eq!([1, 2, 3, 4].map(there), [false, true, true, true]);
    put(5, None, 100, 10).unwrap();
    assert_eq!([2, 3, 4, 5].map(there), [true, false, true, true]);
    put(6, None, 100, 10).unwrap();
    assert_eq!(put(7, None, 100, 10), Err(Full));
    assert_eq!([4, 5, 6, 7].map(there), [true, true, true, false]);
    put(4, None, 200, 10).unwrap();
}

#[test]
fn bytes_are_bounded_and_a_value_that_never_fits_evicts_nobody() {
    let table: Table<Kept> = Table::bounded(1_000, 10_000);
    let store = MemoryStore::new();
    for n in 0..100 {
        table
            .update_one(key(&store, n), 0, |slot| {
                slot.set(
                    Kept {
                        bytes: 900,
                        rank: Some(n),
                    },
                    10,
                )
            })
            .unwrap();
        assert!(table.bytes() <= 10_000);
    }
    let entries = table.entries();
    assert!(entries >= 9);
    assert_eq!(
        table.update_one(key(&store, 7), 0, |slot| slot.set(kept(10_001), 10)),
        Err(Full)
    );
    assert_eq!(table.entries(), entries);
}

#[test]
fn room_is_never_made_with_an_entry_of_the_same_step() {
    let store = MemoryStore::builder().max_entries(2).build();
    let table = store.table::<Kept>();
    let keys = [key(&store, 1), key(&store, 2), key(&store, 3)];
    let outcome = table.update(&keys, 0, |slots| {
        slots.set(
            0,
            Kept {
                bytes: 1,
                rank: Some(1),
            },
            10,
        )?;
        slots.set(
            1,
            Kept {
                bytes: 1,
                rank: Some(1),
            },
            10,
        )?;
        slots.set(2, kept(1), 10)
    });
    assert_eq!(outcome, Err(Full));
    assert_eq!(table.entries(), 2);
}

#[test]
fn growth_in_place_is_weighed() {
    let store = MemoryStore::new();
    let table = store.table::<Kept>();
    let keys = [key(&store, 1), key(&store, 1)];
    table
        .update(&keys, 0, |slots| slots.set(0, kept(10), 10))
        .unwrap();
    let before = table.bytes();
    table.update(&keys, 0, |slots| {
        slots.get_mut(1).unwrap().bytes = 60;
        assert_eq!(slots.get(0).unwrap().bytes, 60);
    });
    assert_eq!(table.bytes(), before + 50);
}

#[test]
fn opposite_orders_of_keys_do_not_deadlock_and_lose_nothing() {
    let store = Arc::new(MemoryStore::new());
    let threads: Vec<_> = (0..4)
        .map(|turn| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                for round in 0..5_000_u64 {
                    let (a, b) = (round % 7, (round + 1 + turn) % 7);
                    let keys = if turn % 2 == 0 {
                        [key(&store, a), key(&store, b)]
                    } else {
                        [key(&store, b), key(&store, a)]
                    };
                    store.table::<Kept>().update(&keys, 0, |slots| {
                        for index in 0..2 {
                            let bytes = slots.get(index).map_or(0, |kept| kept.bytes) + 1;
                            slots.set(index, kept(bytes), 10).unwrap();
                        }
                    });
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    let sum: usize = (0..7)
        .map(|n| {
            store.table::<Kept>().update_one(key(&store, n), 0, |slot| {
                slot.get().map_or(0, |kept| kept.bytes)
            })
        })
        .sum();
    assert_eq!(sum, 4 * 5_000 * 2);
}

#[test]
fn a_flood_of_dead_entries_is_given_back_by_later_inserts() {
    let store = MemoryStore::builder().max_entries(200_000).build();
    let table = store.table::<Kept>();
    for n in 0..100_000 {
        table
            .update_one(key(&store, n), 0, |slot| slot.set(kept(1), 10))
            .unwrap();
    }
    for n in 0..100_000 {
        table
            .update_one(key(&store, 1_000_000 + n), 20 + n, |slot| {
                slot.set(kept(1), 21 + n)
            })
            .unwrap();
    }
    assert!(table.entries() < 2_000, "{} entries left", table.entries());
}

#[test]
fn a_flood_of_dead_entries_is_given_back_also_by_inserts_that_live() {
    let store = MemoryStore::builder().max_entries(400_000).build();
    let table = store.table::<Kept>();
    for n in 0..100_000 {
        table
            .update_one(key(&store, n), 0, |slot| slot.set(kept(1), 10))
            .unwrap();
    }
    // Of these the last 20,000 are live at any time.
    for n in 0..130_000 {
        table
            .update_one(key(&store, 1_000_000 + n), 20 + n, |slot| {
                slot.set(kept(1), 20_020 + n)
            })
            .unwrap();
    }
    assert!(table.entries() < 50_000, "{} entries left", table.entries());
}

proptest! {
    #[test]
    fn it_agrees_with_a_plain_map(steps in prop::collection::vec((0..12_u64, 0..4_u8, 1..40_u64), 1..200)) {
        let store = MemoryStore::builder().max_entries(64).build();
        let table = store.table::<Kept>();
        let (mut model, mut now) = (HashMap::<u64, (usize, u64)>::new(), 0);
        for (n, action, size) in steps {
            now += size / 20;
            model.retain(|_, (_, expires_at)| *expires_at > now);
            let seen = table.update_one(key(&store, n), now, |slot| match action {
                0 => slot.set(kept(size as usize), now + size).map(|()| None).unwrap(),
                1 => slot.remove().map(|kept| kept.bytes),
                2 => slot.get_mut().map(|kept| { kept.bytes += 1; kept.bytes }),
                _ => slot.get().map(|kept| kept.bytes),
            });
            let expected = match action {
                0 => { model.insert(n, (size as usize, now + size)); None }
                1 => model.remove(&n).map(|(bytes, _)| bytes),
                2 => model.get_mut(&n).map(|(bytes, _)| { *bytes += 1; *bytes }),
                _ => model.get(&n).map(|(bytes, _)| *bytes),
            };
            prop_assert_eq!(seen, expected);
        }
        prop_assert!(table.entries() >= model.len());
    }
}

#[test]
fn room_is_made_in_any_shard_that_the_step_has_locked() {
    let store = MemoryStore::builder().max_entries(2_048).build();
    let table = store.table::<Kept>();
    let in_shard = |shard: u64| {
        (0..)
            .map(|n| key(&store, n))
            .filter(move |key| key.shard & 1 == shard)
    };
    let put = |key, rank| table.update_one(key, 0, |slot| slot.set(Kept { bytes: 1, rank }, 10));
    in_shard(0)
        .take(1_024)
        .for_each(|key| put(key, None).unwrap());
    in_shard(1)
        .take(1_024)
        .for_each(|key| put(key, Some(1)).unwrap());
    let keys = [
        in_shard(0).nth(1_024).unwrap(),
        in_shard(1).nth(1_024).unwrap(),
    ];
    let written = table.update(&keys, 0, |slots| slots.set(0, kept(1), 10));
    assert_eq!(written, Ok(()));
    assert_eq!(table.entries(), 2_048);
}

#[test]
fn what_is_absent_is_written_the_short_way_and_all_else_is_given_back() {
    let store = MemoryStore::new();
    let table: Table<Kept> = Table::bounded(2, 10_000);
    let mut written = 0;
    let mut put = |n, bytes, now| {
        let set = table.set_absent(key(&store, n), now, (kept(bytes), 10), || written += 1);
        set.map_err(|kept| kept.bytes)
    };
    assert_eq!(put(1, 100, 0), Ok(()));
    let one = (table.entries(), table.bytes());
    assert_eq!(put(1, 5, 0), Err(5), "it is there");
    assert_eq!(put(1, 6, 10), Err(6), "expired, and still a row");
    assert_eq!(put(2, 10_000, 0), Err(10_000), "room would have to be made");
    assert_eq!((table.entries(), table.bytes()), one);
    assert_eq!(put(2, 100, 0), Ok(()));
    assert_eq!(put(3, 1, 0), Err(1), "no place");
    assert_eq!((table.entries(), table.bytes()), (2, 2 * one.1));
    assert_eq!(written, 2);
    let there = |n| table.read_one(key(&store, n), 0, |kept| kept.map(|kept| kept.bytes));
    assert_eq!([1, 2, 3].map(there), [Some(100), Some(100), None]);
}
