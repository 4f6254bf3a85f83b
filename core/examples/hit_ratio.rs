//! Prints what a zone holds and how well it chooses what to drop, beside the alternatives:
//! `cargo run --release -p matrix-user-hash-core --example hit_ratio`. About a minute.

#![allow(clippy::print_stdout, reason = "a table on stdout is its purpose")]

use std::time::Instant;

#[path = "../tests/support/capacity.rs"]
mod capacity;
#[path = "../tests/support/random.rs"]
mod random;

use capacity::{
    Cache, MEBIBYTE_WORDS, Module, OneSet, TrueLru, cycle, fewest_of_the_last, hit_ratio, kept_of,
    zipf, zipf_and_scan,
};

type Make = fn() -> Box<dyn Cache>;

fn room() -> usize {
    Module::new(MEBIBYTE_WORDS).capacity()
}

const CACHES: [(&str, Make); 4] = [
    ("the module's", || Box::new(Module::new(MEBIBYTE_WORDS))),
    ("one set of 8", || Box::new(OneSet::new(room(), 8))),
    ("one set of 16", || Box::new(OneSet::new(room(), 16))),
    ("true LRU", || Box::new(TrueLru::new(room()))),
];

fn main() {
    println!("a zone of 1m has room for {} tokens\n", room());
    row("", |name, _| name.to_owned());
    for tokens in [24_000, 28_000, 30_000, 31_000] {
        row(&format!("(a) kept of {tokens} distinct"), |_, cache| {
            percent(kept_of(cache, tokens) as f64 / tokens as f64)
        });
    }
    row("(b) fewest of the last 20,000, in 2,000,000", |_, cache| {
        percent(fewest_of_the_last(cache, 2_000_000, 10_000, 20_000) as f64 / 20_000.0)
    });
    for s in [0.7, 0.9, 1.1] {
        row(
            &format!("(c) Zipf {s}, 200,000 tokens: hits"),
            |_, cache| percent(hit_ratio(cache, zipf(200_000, s, 3_000_000, 1))),
        );
    }
    row("(c) Zipf 0.9 and a sweep over 40,000: hits", |_, cache| {
        percent(hit_ratio(
            cache,
            zipf_and_scan(200_000, 40_000, 3_000_000, 2),
        ))
    });
    row("(c) Zipf 0.9 and a sweep over 10,000: hits", |_, cache| {
        percent(hit_ratio(
            cache,
            zipf_and_scan(200_000, 10_000, 3_000_000, 2),
        ))
    });
    for tokens in [28_000, 30_000, 40_000] {
        row(
            &format!("(c) round and round over {tokens}: hits"),
            |_, cache| percent(hit_ratio(cache, cycle(tokens, 3_000_000))),
        );
    }
    let start = Instant::now();
    row("(d) fewest of the last 1,000, in 10,000,000", |_, cache| {
        fewest_of_the_last(cache, 10_000_000, 10_000, 1_000).to_string()
    });
    println!(
        "\n(d) took {:.1} s for all four",
        start.elapsed().as_secs_f64()
    );
}

fn row(title: &str, figure: impl Fn(&str, &mut dyn Cache) -> String) {
    print!("{title:<46}");
    for (name, make) in CACHES {
        print!("{:>15}", figure(name, &mut *make()));
    }
    println!();
}

fn percent(share: f64) -> String {
    format!("{:.2}%", share * 100.0)
}
