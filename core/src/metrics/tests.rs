use std::collections::BTreeSet;

use super::render::{self, Moves};
use super::*;
use crate::key::{Key, Secret};
use crate::shift::{Shift, Span};
use crate::shm::table::Masquerade;
use crate::sync::AtomicU64;
use crate::user::UserHash;

const DAY: Seconds = Seconds::new(86_400);
const NOW: Millis = Millis::new(1_000);

fn json(zones: &[(&str, Snapshot)], shifts: &[Moves<'_>]) -> String {
    String::from_utf8(render::json(zones, shifts).unwrap()).unwrap()
}

fn prometheus(zones: &[(&str, Snapshot)], shifts: &[Moves<'_>]) -> String {
    String::from_utf8(render::prometheus(zones, shifts).unwrap()).unwrap()
}

fn memory() -> Vec<AtomicU64> {
    (0..16_384).map(|_| AtomicU64::new(0)).collect()
}

fn zone(memory: &[AtomicU64]) -> Zone<'_> {
    Zone::format(memory, &Secret::from_bytes([1; 16])).unwrap()
}

fn read(zone: &Zone<'_>) -> Snapshot {
    Snapshot::read(zone, NOW, DAY, |_| true)
}

#[test]
fn every_event_of_every_worker_is_in_the_sum() {
    let memory = memory();
    let zone = zone(&memory);
    for worker in 0..100 {
        for (number, counter) in Counter::ALL.iter().enumerate() {
            for _ in 0..=number {
                zone.counters().slot(worker).count(*counter);
            }
        }
    }
    let figures = read(&zone);
    for (number, counter) in Counter::ALL.iter().enumerate() {
        assert_eq!(
            figures.get(*counter),
            100 * (number as u64 + 1),
            "{counter:?}"
        );
    }
}

#[test]
fn workers_that_count_do_not_share_cache_lines() {
    let memory = memory();
    let counters = zone(&memory).counters();
    let start = |worker: usize| counters.slot(worker).words.as_ptr().addr();
    assert_eq!(start(1) - start(0), SLOT_WORDS * 8);
    assert_eq!(SLOT_WORDS % 8, 0);
    assert_eq!(
        start(0),
        start(4),
        "the fifth worker of a small zone shares with the first"
    );
}

#[test]
fn a_lookup_is_in_the_first_bucket_whose_bound_it_does_not_pass() {
    let memory = memory();
    let zone = zone(&memory);
    for micros in [0, 1_000, 1_001, 5_000_000, 5_000_001] {
        zone.counters().slot(0).observe_lookup(micros);
    }
    let figures = read(&zone);
    assert_eq!(figures.durations, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    assert_eq!(figures.duration_sum, 10_002_002);
    assert_eq!(figures.lookups_timed(), 5);
}

fn used(memory: &[AtomicU64]) -> Snapshot {
    let zone = zone(memory);
    let slot = zone.counters().slot(3);
    for counter in [
        Counter::Hits,
        Counter::Hits,
        Counter::Misses,
        Counter::ErrorTooLarge,
    ] {
        slot.count(counter);
    }
    slot.observe_lookup(2_250);
    let key = Key::from_words([1, 2 << 40]);
    zone.table()
        .insert(&key, UserHash::from_bits(3), Masquerade::No, NOW, DAY);
    read(&zone)
}

#[test]
fn json_is_one_object_of_zones_with_every_figure() {
    let memory = memory();
    let text = json(&[("users", used(&memory)), ("a \"b\"", used(&memory))], &[]);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let zone = &value["zones"]["users"];
    assert_eq!(zone["requests"]["hit"], 2);
    assert_eq!(zone["requests"]["miss"], 1);
    assert_eq!(zone["entries"], 1);
    assert_eq!(zone["errors"]["too_large"], 1);
    assert_eq!(zone["suspended"], false);
    assert_eq!(zone["lookup_seconds"]["buckets"]["0.001"], 0);
    assert_eq!(zone["lookup_seconds"]["buckets"]["0.0025"], 1);
    assert_eq!(zone["lookup_seconds"]["buckets"]["+Inf"], 1);
    assert_eq!(zone["lookup_seconds"]["sum"], 0.00225);
    for figure in ["capacity", "lookups_in_flight", "lookups", "evictions"] {
        assert!(zone[figure].is_u64(), "{figure}");
    }
    for status in [
        "shared",
        "stale",
        "refused",
        "error",
        "timeout",
        "anonymous",
    ] {
        assert_eq!(zone["requests"][status], 0, "{status}");
    }
    assert_eq!(value["zones"].as_object().unwrap().len(), 2);
}

#[test]
fn prometheus_text_names_each_family_once_and_escapes_zones() {
    let memory = memory();
    let text = prometheus(&[("users", used(&memory)), ("a\"b\\c", used(&memory))], &[]);
    let types: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("# TYPE "))
        .collect();
    assert_eq!(types.len(), types.iter().collect::<BTreeSet<_>>().len());
    for line in [
        "matrix_user_hash_entries{zone=\"users\"} 1",
        "matrix_user_hash_requests_total{zone=\"users\",status=\"hit\"} 2",
        "matrix_user_hash_requests_total{zone=\"a\\\"b\\\\c\",status=\"hit\"} 2",
        "matrix_user_hash_errors_total{zone=\"users\",kind=\"too_large\"} 1",
        "matrix_user_hash_lookup_duration_seconds_bucket{zone=\"users\",le=\"0.0025\"} 1",
        "matrix_user_hash_lookup_duration_seconds_bucket{zone=\"users\",le=\"+Inf\"} 1",
        "matrix_user_hash_lookup_duration_seconds_sum{zone=\"users\"} 0.00225",
        "matrix_user_hash_lookup_duration_seconds_count{zone=\"users\"} 1",
        "# TYPE matrix_user_hash_lookup_duration_seconds histogram",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn every_counter_is_in_both_formats() {
    let memory = memory();
    let zone = zone(&memory);
    for (number, counter) in Counter::ALL.iter().enumerate() {
        for _ in 0..1_000 + number {
            zone.counters().slot(0).count(*counter);
        }
    }
    let figures = [("users", read(&zone))];
    let (json, prometheus) = (json(&figures, &[]), prometheus(&figures, &[]));
    for number in 0..Counter::ALL.len() {
        let count = (1_000 + number).to_string();
        assert!(
            json.contains(&format!(":{count}")),
            "{:?}",
            Counter::ALL[number]
        );
        assert!(
            prometheus.contains(&format!(" {count}\n")),
            "{:?}",
            Counter::ALL[number]
        );
    }
}

#[test]
fn a_limit_is_counted_under_its_name_and_a_strange_name_under_other() {
    let limits = FAMILIES.iter().find(|family| family.name == "limited");
    for &(counter, name) in limits.unwrap().counters {
        assert_eq!(Counter::of_limit(name.as_bytes()), Some(counter), "{name}");
    }
    assert_eq!(Counter::of_limit(b"Sync"), Some(Counter::LimitedOther));
    assert_eq!(Counter::of_limit(b""), None);
}

#[test]
fn the_kinds_of_errors_are_called_as_in_log_lines() {
    let errors = FAMILIES.iter().find(|family| family.name == "errors");
    let wanted = FailureKind::ALL.map(|kind| (Counter::of_failure(kind), kind.as_str()));
    assert_eq!(errors.unwrap().counters, wanted);
}

#[test]
fn shifts_have_their_share_and_their_times() {
    let over = Shift::Over(Span::new(1_795_618_800_500, 3_600_000).unwrap());
    let shifts = [("group", over), ("canary", Shift::At(125))].map(|(variable, shift)| Moves {
        variable,
        shift,
        now: 1_795_619_700_500,
    });
    let value: serde_json::Value = serde_json::from_str(&json(&[], &shifts)).unwrap();
    assert_eq!(
        value["shifts"],
        serde_json::json!({
            "group": {"moved": 0.25, "start": 1_795_618_800.5, "end": 1_795_622_400.5},
            "canary": {"moved": 0.0125, "start": null, "end": null},
        })
    );
    let text = prometheus(&[], &shifts);
    for line in [
        "matrix_user_hash_shift_moved_ratio{variable=\"group\"} 0.25",
        "matrix_user_hash_shift_moved_ratio{variable=\"canary\"} 0.0125",
        "matrix_user_hash_shift_start_timestamp_seconds{variable=\"group\"} 1795618800.5",
        "matrix_user_hash_shift_end_timestamp_seconds{variable=\"group\"} 1795622400.5",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert_eq!(text.matches("canary").count(), 1, "{text}");
    assert!(!prometheus(&[], &[]).contains("shift"));
}
