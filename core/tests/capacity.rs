//! What a zone of one mebibyte holds, in short; `examples/hit_ratio.rs` at length.

#![cfg(not(loom))]

#[path = "support/capacity.rs"]
mod capacity;
#[path = "support/random.rs"]
mod random;

use capacity::{
    MEBIBYTE_WORDS, Module, OneSet, TrueLru, cycle, fewest_of_the_last, hit_ratio, kept_of, zipf,
    zipf_and_scan,
};

fn module() -> Module {
    Module::new(MEBIBYTE_WORDS)
}

fn true_lru() -> TrueLru {
    TrueLru::new(module().capacity())
}

#[test]
fn every_one_of_28_000_tokens_has_its_place_in_a_mebibyte() {
    assert_eq!(kept_of(&mut module(), 28_000), 28_000);
}

#[test]
fn one_choice_of_sixteen_places_would_not_have_done() {
    let capacity = module().capacity();
    assert!(kept_of(&mut OneSet::new(capacity, 16), 28_000) < 27_000);
}

#[test]
fn of_the_last_20_000_tokens_99_in_100_are_there_at_any_time() {
    let fewest = fewest_of_the_last(&mut module(), 120_000, 20_000, 20_000);
    assert!(fewest >= 19_800, "{fewest}");
}

#[test]
fn the_last_thousand_of_many_are_all_there() {
    assert_eq!(
        fewest_of_the_last(&mut module(), 120_000, 10_000, 1_000),
        1_000
    );
}

#[test]
fn hits_are_within_a_point_of_the_true_least_recently_used_on_a_zipf_trace() {
    let ours = hit_ratio(&mut module(), zipf(200_000, 0.9, 150_000, 1));
    let best = hit_ratio(&mut true_lru(), zipf(200_000, 0.9, 150_000, 1));
    assert!(ours > best - 0.01, "{ours:.4} of {best:.4}");
}

#[test]
fn hits_are_within_a_point_of_the_true_least_recently_used_when_something_sweeps() {
    for swept in [10_000, 40_000] {
        let ours = hit_ratio(&mut module(), zipf_and_scan(200_000, swept, 150_000, 2));
        let best = hit_ratio(&mut true_lru(), zipf_and_scan(200_000, swept, 150_000, 2));
        assert!(ours > best - 0.01, "{ours:.4} of {best:.4}");
    }
}

#[test]
fn a_sweep_that_fits_is_all_hits_from_the_second_round_on() {
    let rounds = 4;
    let ours = hit_ratio(&mut module(), cycle(28_000, 28_000 * rounds));
    assert!((ours - 0.75).abs() < 0.001, "{ours:.4}");
}
