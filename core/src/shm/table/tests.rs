use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const DAY: Seconds = Seconds::new(86_400);
const NOW: Millis = Millis::new(7_200_000);

fn memory(sets: usize) -> Vec<AtomicU64> {
    (0..sets * SET_WORDS).map(|_| AtomicU64::new(0)).collect()
}

/// The key of the n-th token, spread like a digest.
fn key(n: u64) -> Key {
    let spread = |n: u64| {
        let z = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    Key::from_words([spread(n.wrapping_add(1)), spread(!n) & TAG])
}

fn user(n: u64) -> UserHash {
    UserHash::from_bits(key(n ^ 0x00a1_1ce0).words()[0])
}

fn insert(table: &Table<'_>, n: u64) -> Inserted {
    table.insert(&key(n), user(n), Masquerade::No, NOW, DAY)
}

#[test]
fn what_was_stored_is_found_with_its_age() {
    let (memory, clock) = (memory(4), AtomicU64::new(0));
    let table = Table::new(&memory, &clock).unwrap();
    assert_eq!(table.get(&key(1), NOW, DAY), None);
    for masquerade in [Masquerade::No, Masquerade::Maybe, Masquerade::Never] {
        table.insert(&key(1), user(1), masquerade, NOW, DAY);
        let entry = table.get(&key(1), NOW.plus(61_500), DAY).unwrap();
        assert_eq!((entry.user, entry.masquerade), (user(1), masquerade));
        assert_eq!(entry.age, Seconds::new(61));
    }
    assert_eq!(table.occupancy(NOW, DAY), (1, 32));
}

#[test]
fn fewer_words_than_a_set_are_no_table() {
    let (memory, clock) = (memory(1), AtomicU64::new(0));
    assert!(Table::new(&memory[..SET_WORDS - 1], &clock).is_none());
    assert_eq!(Table::new(&memory, &clock).unwrap().capacity(), WAYS);
}

#[test]
fn a_refresh_makes_an_entry_young_and_takes_no_place() {
    let (memory, clock) = (memory(4), AtomicU64::new(0));
    let table = Table::new(&memory, &clock).unwrap();
    assert!(!insert(&table, 1).refreshed);
    let later = NOW.plus(3_600_000);
    let again = table.insert(&key(1), user(1), Masquerade::No, later, DAY);
    assert!(again.refreshed && !again.evicted);
    assert_eq!(table.get(&key(1), later, DAY).unwrap().age, Seconds::new(0));
    assert_eq!(table.occupancy(later, DAY).0, 1);
}

#[test]
fn every_mixture_of_two_writes_is_a_miss_never_another_user() {
    let clock = AtomicU64::new(0);
    let written = |n: u64, masquerade| {
        let memory = memory(1);
        let table = Table::new(&memory, &clock).unwrap();
        table.insert(&key(n), user(n), masquerade, NOW, DAY);
        let way = (0..WAYS)
            .find(|way| memory[*way].load(Relaxed) != 0)
            .unwrap();
        [0, 1, 2].map(|line| memory[line * WAYS + way].load(Relaxed))
    };
    let alice = written(1, Masquerade::No);
    for other in [
        written(2, Masquerade::No),
        written(1, Masquerade::Maybe),
        [0; 3],
    ] {
        for mixture in 1..7 {
            let memory = memory(1);
            for line in 0..3 {
                let from = if mixture >> line & 1 == 1 {
                    other
                } else {
                    alice
                };
                memory[line * WAYS].store(from[line], Relaxed);
            }
            let table = Table::new(&memory, &clock).unwrap();
            for n in [1, 2] {
                if let Some(entry) = table.get(&key(n), NOW, DAY) {
                    assert_eq!(entry.user, user(n), "mixture {mixture:03b}");
                }
            }
            if other != written(1, Masquerade::Maybe) {
                assert_eq!(table.get(&key(1), NOW, DAY), None, "mixture {mixture:03b}");
            }
        }
    }
}

#[test]
fn a_torn_entry_is_mended_by_the_next_store_of_its_key() {
    let (memory, clock) = (memory(1), AtomicU64::new(0));
    let table = Table::new(&memory, &clock).unwrap();
    for n in 0..8 {
        insert(&table, n);
    }
    memory[2 * WAYS + 3].fetch_xor(1 << 40, Relaxed);
    let lost = (0..8)
        .find(|n| table.get(&key(*n), NOW, DAY).is_none())
        .unwrap();
    assert!(insert(&table, lost).refreshed);
    assert_eq!(table.get(&key(lost), NOW, DAY).unwrap().user, user(lost));
}

#[test]
#[cfg_attr(miri, ignore = "too much for an interpreter")]
fn a_torn_entry_makes_way_before_one_that_somebody_can_find() {
    let (memory, clock) = (memory(64), AtomicU64::new(0));
    let table = Table::new(&memory, &clock).unwrap();
    for n in 0..4_000 {
        insert(&table, n);
    }
    assert!(insert(&table, 4_000).evicted);
    memory[17 * SET_WORDS + WAYS + 5].fetch_xor(1 << 63, Relaxed);
    let belongs = |n: &u64| {
        let [low, high] = key(*n).words();
        table.choices(low, high).0 == 17
    };
    let newcomer = (5_000..).find(belongs).unwrap();
    assert!(!insert(&table, newcomer).evicted);
}

#[test]
#[cfg_attr(miri, ignore = "too much for an interpreter")]
fn an_entry_moves_to_its_other_set_rather_than_going_while_there_is_room() {
    let (memory, clock) = (memory(512), AtomicU64::new(0));
    let table = Table::new(&memory, &clock).unwrap();
    // Without moves some hundredths of these are lost.
    let nearly_all = 4_096 * 9 / 10;
    for n in 0..nearly_all {
        assert!(!insert(&table, n).evicted, "{n}");
    }
    for n in 0..nearly_all {
        assert_eq!(table.get(&key(n), NOW, DAY).unwrap().user, user(n));
    }
}

#[test]
fn a_key_stored_twice_at_once_is_one_entry_after_the_next_store() {
    let (memory, clock) = (memory(1), AtomicU64::new(0));
    let table = Table::new(&memory, &clock).unwrap();
    insert(&table, 1);
    let way = (0..WAYS)
        .find(|way| memory[*way].load(Relaxed) != 0)
        .unwrap();
    let twin = (way + 1) % WAYS;
    for line in 0..4 {
        let word = memory[line * WAYS + way].load(Relaxed);
        memory[line * WAYS + twin].store(word, Relaxed);
    }
    assert_eq!(table.occupancy(NOW, DAY).0, 2);
    assert!(insert(&table, 1).refreshed);
    assert_eq!(table.occupancy(NOW, DAY).0, 1);
    assert!(table.remove(&key(1)));
    assert!(!table.remove(&key(1)));
    assert_eq!(table.occupancy(NOW, DAY).0, 0);
}

#[test]
fn the_least_recently_used_goes_first_although_no_second_passed() {
    let (memory, clock) = (memory(1), AtomicU64::new(0));
    let table = Table::new(&memory, &clock).unwrap();
    for n in 0..8 {
        assert!(!insert(&table, n).evicted);
    }
    assert!(table.get(&key(0), NOW, DAY).is_some());
    assert!(insert(&table, 8).evicted);
    assert!(table.get(&key(0), NOW, DAY).is_some());
    assert_eq!(table.get(&key(1), NOW, DAY), None);
}

#[test]
fn what_is_unused_for_longer_than_inactive_goes_before_all_and_is_not_missed() {
    let (memory, clock) = (memory(1), AtomicU64::new(0));
    let table = Table::new(&memory, &clock).unwrap();
    for n in 0..8 {
        insert(&table, n);
    }
    let later = NOW.plus(86_401_000);
    for n in (0..8).filter(|n| *n != 5) {
        table.get(&key(n), later, DAY).unwrap();
    }
    assert_eq!(table.occupancy(later, DAY), (7, 8));
    let inserted = table.insert(&key(8), user(8), Masquerade::No, later, DAY);
    assert!(!inserted.evicted);
    assert_eq!(table.get(&key(5), later, DAY), None);
}

#[test]
fn a_hit_writes_nothing_while_the_last_note_of_its_use_is_recent() {
    let (memory, clock) = (memory(64), AtomicU64::new(0));
    let table = Table::new(&memory, &clock).unwrap();
    insert(&table, 1);
    let bits = || -> Vec<u64> { memory.iter().map(|word| word.load(Relaxed)).collect() };
    let before = bits();
    table.get(&key(1), NOW.plus(59_000), DAY).unwrap();
    assert_eq!(bits(), before);
    table.get(&key(1), NOW.plus(60_000), DAY).unwrap();
    assert_ne!(bits(), before);
}

#[test]
#[cfg_attr(miri, ignore = "too much for an interpreter")]
fn a_table_of_a_million_entries_is_counted_by_a_sample() {
    let (memory, clock) = (memory(1 << 17), AtomicU64::new(0));
    let table = Table::new(&memory, &clock).unwrap();
    for n in 0..300_000 {
        insert(&table, n);
    }
    let (entries, capacity) = table.occupancy(NOW, DAY);
    assert_eq!(capacity, 1 << 20);
    assert!((294_000..=306_000).contains(&entries), "{entries}");
}

#[test]
fn every_entry_is_listed_once_as_it_was_stored() {
    let (memory, clock) = (memory(64), AtomicU64::new(0));
    let table = Table::new(&memory, &clock).unwrap();
    for n in 0..300 {
        insert(&table, n);
    }
    let records: HashMap<_, _> = table
        .records(NOW.plus(9_000))
        .map(|record| (record.key, record))
        .collect();
    assert_eq!(records.len(), 300);
    for n in 0..300 {
        let record = records[&key(n)];
        assert_eq!(record.user, user(n));
        assert_eq!(
            (record.looked_up, record.used),
            (Seconds::new(9), Seconds::new(9))
        );
    }
}

/// What may happen to a table.
#[derive(Clone, Debug)]
enum Step {
    Get(u64),
    Insert(u64, Masquerade),
    Remove(u64),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let token = 0_u64..60;
    let masquerade = prop_oneof![
        Just(Masquerade::No),
        Just(Masquerade::Maybe),
        Just(Masquerade::Never)
    ];
    let step = prop_oneof![
        4 => token.clone().prop_map(Step::Get),
        4 => (token.clone(), masquerade).prop_map(|(n, m)| Step::Insert(n, m)),
        1 => token.prop_map(Step::Remove),
        1 => (0_u64..90_000_000).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..400)
}

proptest! {
    /// The model is a map of what was stored, and of the number of insertions when each was last touched, removed or not.
    /// In a table of one set the order of use is exact: only so many others, touched since, can have driven one out.
    #[test]
    #[cfg_attr(miri, ignore = "too much for an interpreter")]
    fn it_never_gives_what_was_not_stored_and_keeps_what_was_used_last(
        steps in steps(), sets in 1_usize..6, start: u32,
    ) {
        let (memory, clock) = (memory(sets), AtomicU64::new(u64::from(start)));
        let table = Table::new(&memory, &clock).unwrap();
        let mut now = Millis::new(u64::from(start) * 1_000);
        let mut model: HashMap<u64, (Masquerade, Millis)> = HashMap::new();
        let mut touched: HashMap<u64, u64> = HashMap::new();
        let mut insertions = 0_u64;
        for step in steps {
            match step {
                Step::Wait(millis) => now = now.plus(millis),
                Step::Remove(n) => {
                    let known = table.remove(&key(n));
                    prop_assert!(!known || model.contains_key(&n));
                    model.remove(&n);
                }
                Step::Insert(n, masquerade) => {
                    let inserted = table.insert(&key(n), user(n), masquerade, now, DAY);
                    prop_assert!(!inserted.refreshed || model.contains_key(&n));
                    insertions += u64::from(!inserted.refreshed);
                    model.insert(n, (masquerade, now));
                    touched.insert(n, insertions);
                }
                Step::Get(n) => match (table.get(&key(n), now, DAY), model.get(&n)) {
                    (Some(entry), Some((masquerade, looked_up))) => {
                        prop_assert_eq!(entry.user, user(n));
                        prop_assert_eq!(entry.masquerade, *masquerade);
                        let age = now.seconds() - looked_up.seconds();
                        prop_assert_eq!(u64::from(entry.age.get()), age);
                        touched.insert(n, insertions);
                    }
                    (Some(_), None) => prop_assert!(false, "{} was never stored", n),
                    (None, Some(_)) => {
                        let own = touched[&n];
                        let since = touched.values().filter(|other| **other >= own).count();
                        prop_assert!(own < insertions);
                        prop_assert!(sets > 1 || since > WAYS, "{} after {}", n, since);
                        model.remove(&n);
                    }
                    (None, None) => {}
                },
            }
            let (entries, capacity) = table.occupancy(now, DAY);
            prop_assert!(entries <= capacity && entries <= model.len() as u64);
        }
    }
}
