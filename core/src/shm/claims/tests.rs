use proptest::prelude::*;

use super::*;

const NOW: Millis = Millis::new(50_000_000);
const TIMEOUT: u64 = 2_000;

fn memory(words: usize) -> Vec<AtomicU64> {
    (0..words).map(|_| AtomicU64::new(0)).collect()
}

/// The key with that tag, in that word of 64.
fn key(tag: u64, index: u64) -> Key {
    Key::from_words([tag, index << 26])
}

fn asker(pid: u32) -> Asker {
    Asker {
        pid,
        deadline: NOW.plus(TIMEOUT),
        max_lookups: 64,
        waited: false,
        yields: false,
        patience: TIMEOUT,
    }
}

fn waited(pid: u32) -> Asker {
    Asker {
        waited: true,
        ..asker(pid)
    }
}

fn all_alive(_: u32) -> bool {
    true
}

fn lead(flights: &Flights<'_>, key: &Key, asker: &Asker, now: Millis) -> Permit {
    match flights.claim(key, asker, now, all_alive) {
        Claim::Leader(permit) => permit,
        other => panic!("{other:?} in place of a permit"),
    }
}

#[test]
fn one_process_leads_and_the_others_wait_until_it_has_stored() {
    let memory = memory(64);
    let flights = Flights::new(&memory).unwrap();
    let permit = lead(&flights, &key(1, 5), &asker(100), NOW);
    assert_eq!(
        flights.claim(&key(1, 5), &asker(101), NOW, all_alive),
        Claim::Same
    );
    assert_eq!(
        flights.claim(&key(1, 5), &asker(100), NOW, all_alive),
        Claim::Same
    );
    assert_eq!(flights.in_flight(NOW, all_alive), 1);
    assert!(flights.release(permit));
    assert_eq!(flights.in_flight(NOW, all_alive), 0);
    let _held = lead(&flights, &key(1, 5), &waited(101), NOW);
}

#[test]
fn a_word_held_for_another_key_keeps_this_one_out() {
    let memory = memory(64);
    let flights = Flights::new(&memory).unwrap();
    let _held = lead(&flights, &key(1, 5), &asker(100), NOW);
    assert_eq!(
        flights.claim(&key(2, 5), &asker(101), NOW, all_alive),
        Claim::Held
    );
    let _held = lead(&flights, &key(2, 6), &asker(101), NOW);
}

#[test]
fn those_who_waited_learn_of_a_refusal_or_failure_and_newcomers_ask_anew() {
    let kinds = FailureKind::ALL.into_iter();
    let failures = kinds
        .filter(|kind| *kind != FailureKind::Local)
        .map(LookupError::Failed);
    for outcome in failures.chain([LookupError::Refused]) {
        let memory = memory(64);
        let flights = Flights::new(&memory).unwrap();
        let permit = lead(&flights, &key(1, 5), &asker(100), NOW);
        assert!(flights.publish(permit, outcome, TIMEOUT, NOW));
        assert_eq!(flights.in_flight(NOW, all_alive), 0);
        let claim = |key, asker, now| flights.claim(&key, &asker, now, all_alive);
        let soon = NOW.plus(PUBLISHED_FOR - 1);
        assert_eq!(
            claim(key(1, 5), waited(101), soon),
            Claim::Published(outcome)
        );
        let late = NOW.plus(PUBLISHED_FOR + 2 * UNIT);
        assert!(matches!(
            claim(key(1, 5), waited(101), late),
            Claim::Leader(_)
        ));
    }
}

#[test]
fn an_outcome_keeps_nobody_else_out() {
    let memory = memory(64);
    let flights = Flights::new(&memory).unwrap();
    let permit = lead(&flights, &key(1, 5), &asker(100), NOW);
    assert!(flights.publish(permit, LookupError::Refused, TIMEOUT, NOW));
    let permit = lead(&flights, &key(2, 5), &waited(101), NOW);
    assert!(flights.publish(permit, LookupError::Refused, TIMEOUT, NOW));
    let _held = lead(&flights, &key(2, 5), &asker(102), NOW);
}

#[test]
fn a_leader_that_died_is_replaced_at_once() {
    let memory = memory(64);
    let flights = Flights::new(&memory).unwrap();
    let _lost = lead(&flights, &key(1, 5), &asker(100), NOW);
    let _lost = lead(&flights, &key(1, 6), &asker(100), NOW);
    let alive = |pid| pid != 100;
    assert_eq!(flights.in_flight(NOW, alive), 0);
    assert!(matches!(
        flights.claim(&key(1, 5), &waited(101), NOW, alive),
        Claim::Leader(_)
    ));
    assert!(matches!(
        flights.claim(&key(9, 6), &asker(101), NOW, alive),
        Claim::Leader(_)
    ));
}

#[test]
fn a_leader_past_its_deadline_is_replaced_and_cannot_end_the_others_lookup() {
    let memory = memory(64);
    let flights = Flights::new(&memory).unwrap();
    let slow = lead(&flights, &key(1, 5), &asker(100), NOW);
    let deadline = NOW.plus(TIMEOUT);
    let before = flights.claim(
        &key(1, 5),
        &asker(101),
        Millis::new(deadline.get() - 1),
        all_alive,
    );
    assert_eq!(before, Claim::Same);
    let after = deadline.plus(UNIT);
    let next = Asker {
        deadline: after.plus(TIMEOUT),
        ..asker(101)
    };
    let permit = lead(&flights, &key(1, 5), &next, after);
    assert!(!flights.publish(
        slow,
        LookupError::Failed(FailureKind::Timeout),
        TIMEOUT,
        after
    ));
    assert_eq!(flights.in_flight(after, all_alive), 1);
    assert!(flights.release(permit));
}

#[test]
fn a_lost_permit_does_not_come_back_when_its_deadline_wraps() {
    let memory = memory(64);
    let flights = Flights::new(&memory).unwrap();
    let _lost = lead(&flights, &key(1, 5), &asker(100), NOW);
    let after = NOW.plus(TIMEOUT + UNIT);
    assert_eq!(flights.in_flight(after, all_alive), 0);
    let wrapped = NOW.plus(UNIT * UNITS);
    assert_eq!(flights.in_flight(wrapped, all_alive), 0);
}

#[test]
fn the_cap_holds_over_keys_and_a_released_permit_makes_room() {
    let memory = memory(64);
    let flights = Flights::new(&memory).unwrap();
    let capped = |pid| Asker {
        max_lookups: 3,
        ..asker(pid)
    };
    let mut held: Vec<_> = (0..3)
        .map(|n| lead(&flights, &key(n, n), &capped(100), NOW))
        .collect();
    assert_eq!(
        flights.claim(&key(3, 3), &capped(101), NOW, all_alive),
        Claim::Full
    );
    assert_eq!(flights.in_flight(NOW, all_alive), 3);
    assert!(flights.release(held.pop().unwrap()));
    let _held = lead(&flights, &key(3, 3), &capped(101), NOW);
    assert_eq!(
        flights.claim(&key(4, 4), &capped(102), NOW, all_alive),
        Claim::Full
    );
    let only_101 = |pid| pid == 101;
    let claim = flights.claim(&key(4, 4), &capped(102), NOW, only_101);
    assert!(
        matches!(claim, Claim::Leader(_)),
        "the dead count no longer"
    );
}

#[test]
fn a_deadline_too_far_away_to_be_told_is_brought_near() {
    let memory = memory(64);
    let flights = Flights::new(&memory).unwrap();
    let patient = Asker {
        deadline: NOW.plus(86_400_000),
        ..asker(100)
    };
    let _held = lead(&flights, &key(1, 5), &patient, NOW);
    assert_eq!(flights.in_flight(NOW.plus(MAX_HOLD - 1), all_alive), 1);
    assert_eq!(flights.in_flight(NOW.plus(MAX_HOLD + UNIT), all_alive), 0);
}

/// One of four processes does something, or time passes.
#[derive(Clone, Debug)]
enum Step {
    Claim { pid: u32, token: u64 },
    Finish { nth: usize, outcome: u8 },
    Die { pid: u32 },
    Wait { millis: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (1_u32..5, 0_u64..12).prop_map(|(pid, token)| Step::Claim { pid, token }),
        3 => (0_usize..8, 0_u8..3).prop_map(|(nth, outcome)| Step::Finish { nth, outcome }),
        1 => (1_u32..5).prop_map(|pid| Step::Die { pid }),
        1 => (0_u64..3_000).prop_map(|millis| Step::Wait { millis }),
    ];
    prop::collection::vec(step, 0..200)
}

#[test]
fn what_one_process_lacked_is_no_news_for_the_others() {
    let memory = memory(64);
    let flights = Flights::new(&memory).unwrap();
    let permit = lead(&flights, &key(1, 5), &asker(100), NOW);
    let local = LookupError::Failed(FailureKind::Local);
    assert!(flights.publish(permit, local, TIMEOUT, NOW));
    let _next = lead(&flights, &key(1, 5), &waited(101), NOW);
}

#[test]
fn that_an_impatient_lookup_took_too_long_is_no_end_for_who_would_wait_longer() {
    let memory = memory(64);
    let flights = Flights::new(&memory).unwrap();
    let permit = lead(&flights, &key(1, 5), &asker(100), NOW);
    let too_long = LookupError::Failed(FailureKind::Timeout);
    assert!(flights.publish(permit, too_long, 100, NOW));
    let claim = |patience| {
        let asker = Asker {
            patience,
            ..waited(101)
        };
        flights.claim(&key(1, 5), &asker, NOW, all_alive)
    };
    assert_eq!(claim(100), Claim::Published(too_long));
    assert!(matches!(claim(200), Claim::Leader(_)));
}

#[test]
fn who_yields_gets_no_place_but_hears_of_its_key() {
    let memory = memory(64);
    let flights = Flights::new(&memory).unwrap();
    let _held = lead(&flights, &key(1, 5), &asker(100), NOW);
    let yields = Asker {
        yields: true,
        ..asker(101)
    };
    let claim = |key| flights.claim(&key, &yields, NOW, all_alive);
    assert_eq!(claim(key(1, 5)), Claim::Same);
    assert_eq!(claim(key(2, 9)), Claim::Full);
}

proptest! {
    /// The model is the list of permits that are out, with key, process and deadline.
    #[test]
    fn no_key_has_two_leaders_and_the_cap_holds_whatever_happens(
        steps in steps(), max_lookups in 1_u32..6,
    ) {
        let memory = memory(8);
        let flights = Flights::new(&memory).unwrap();
        let mut now = NOW;
        let mut out: Vec<(u64, u32, Millis, Permit)> = Vec::new();
        for step in steps {
            out.retain(|(_, _, deadline, _)| now < *deadline);
            match step {
                Step::Claim { pid, token } => {
                    let deadline = now.plus(TIMEOUT);
                    let asker = Asker { pid, deadline, max_lookups, ..asker(pid) };
                    let key = Key::from_words([token, token << 29]);
                    let alive = |other| other == pid || out.iter().any(|(_, pid, _, _)| *pid == other);
                    match flights.claim(&key, &asker, now, alive) {
                        Claim::Leader(permit) => {
                            prop_assert!(out.iter().all(|(held, ..)| *held != token));
                            prop_assert!(out.len() < max_lookups as usize);
                            out.push((token, pid, deadline, permit));
                        }
                        Claim::Same => prop_assert!(
                            out.iter().any(|(held, ..)| *held == token)
                                || flights.in_flight(now, all_alive) > 0
                        ),
                        Claim::Held => prop_assert!(flights.in_flight(now, all_alive) > 0),
                        Claim::Full => prop_assert!(flights.in_flight(now, all_alive) >= max_lookups),
                        Claim::Published(_) => prop_assert!(false, "it had not waited"),
                    }
                }
                Step::Finish { nth, outcome } if nth < out.len() => {
                    let (.., permit) = out.swap_remove(nth);
                    let ended = match outcome {
                        0 => flights.release(permit),
                        1 => flights.publish(permit, LookupError::Refused, TIMEOUT, now),
                        _ => flights.publish(permit, LookupError::Failed(FailureKind::Connect), TIMEOUT, now),
                    };
                    prop_assert!(ended);
                }
                Step::Finish { .. } => {}
                Step::Die { pid } => out.retain(|(_, held_by, _, _)| *held_by != pid),
                Step::Wait { millis } => now = now.plus(millis),
            }
            let counted = flights.in_flight(now, |pid| out.iter().any(|(_, by, _, _)| *by == pid));
            prop_assert!(counted as usize >= out.iter().filter(|(_, _, d, _)| now < *d).count());
        }
    }
}
