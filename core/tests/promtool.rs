//! The Prometheus text as Prometheus itself judges it: `promtool check metrics` (Debian package prometheus).

#![cfg(not(loom))]
#![allow(clippy::print_stderr, reason = "says why it did nothing")]

use std::io::Write;
use std::process::{Command, Stdio};

use matrix_user_hash_core::key::Secret;
use matrix_user_hash_core::metrics::{Counter, Snapshot, render};
use matrix_user_hash_core::shift::{Shift, Span};
use matrix_user_hash_core::shm::zone::Zone;
use matrix_user_hash_core::sync::AtomicU64;
use matrix_user_hash_core::time::{Millis, Seconds};

const NOW: Millis = Millis::new(1_000_000);

/// Without promtool it passes, but for CI, where `CI` is set and promtool is installed.
#[test]
fn promtool_finds_nothing_to_complain_of() {
    let words: Vec<AtomicU64> = (0..16_384).map(|_| AtomicU64::new(0)).collect();
    let zone = Zone::format(&words, &Secret::from_bytes([7; 16])).unwrap();
    let slot = zone.counters().slot(0);
    for counter in Counter::ALL {
        slot.count(*counter);
    }
    for micros in [900, 2_300, 70_000, 9_000_000] {
        slot.observe_lookup(micros);
    }
    let figures = || Snapshot::read(&zone, NOW, Seconds::new(86_400), |_| true);
    let moves = render::Moves {
        variable: "group",
        shift: Shift::Over(Span::new(1_000, 2_000).unwrap()),
        now: 1_500,
    };
    let text = render::prometheus(
        &[("users", figures()), ("with \"quotes\" and \\", figures())],
        &[moves],
    )
    .unwrap();
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut promtool = match promtool {
        Ok(promtool) => promtool,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(
                std::env::var_os("CI").is_none(),
                "promtool is not installed"
            );
            eprintln!("promtool is not installed: nothing checked");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    promtool.stdin.take().unwrap().write_all(&text).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && complaints.is_empty(),
        "{complaints}\n{}",
        String::from_utf8_lossy(&text)
    );
}
