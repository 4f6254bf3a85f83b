//! Whatever a homeserver sends: reading it never panics, does not depend on where it was cut on the way, and ends
//! with the connection.

#![no_main]

use libfuzzer_sys::fuzz_target;
use matrix_user_hash_core::user::{UserHash, UserId};
use matrix_user_hash_core::whoami::{Malformed, Progress, parse};

/// nginx's default buffer of one page.
const LIMIT: usize = 4096;

fuzz_target!(|sent: &[u8]| {
    let open = parse(sent, LIMIT, false);
    let ended = parse(sent, LIMIT, true);
    assert!(!matches!(
        ended,
        Ok(Progress::Incomplete | Progress::UntilClose(_))
    ));

    match &open {
        Ok(Progress::Complete(response)) => {
            assert!(response.body.len() <= LIMIT);
            let Ok(Progress::Complete(same)) = &ended else {
                panic!("an ended connection undoes a whole response");
            };
            assert_eq!(
                (same.status, &same.body, same.keepalive),
                (response.status, &response.body, false)
            );
            // Whatever it says, saying it does not panic; a user is one whom the answer names.
            if let Ok(identity) = response.result(None) {
                let named = serde_json::from_slice::<serde_json::Value>(&response.body)
                    .expect("an answer is JSON");
                let user = UserId::try_from(named["user_id"].as_str().expect("it names a user"))
                    .expect("an answer's user id is one");
                assert_eq!(identity.user, UserHash::of_user(&user));
            }
        }
        // A connection that is still open can make no right beginning wrong but by its length.
        Ok(Progress::Incomplete) => assert!(ended.is_err()),
        Ok(Progress::UntilClose(_)) => assert!(ended.is_ok()),
        Err(malformed) => assert_eq!(ended.as_ref(), Err(malformed)),
    }

    // The same bytes, read when fewer had come.
    let mut last = None;
    for len in 0..=sent.len().min(2 * LIMIT) {
        let now = parse(&sent[..len], LIMIT, false);
        match (&last, &now) {
            (None | Some(Ok(Progress::Incomplete)), _) => {}
            (
                Some(Ok(Progress::UntilClose(_))),
                Ok(Progress::UntilClose(_)) | Err(Malformed::TooLarge),
            ) => {}
            (Some(Ok(Progress::Complete(before))), Ok(Progress::Complete(after))) => {
                assert_eq!((before.status, &before.body), (after.status, &after.body));
            }
            (Some(Err(before)), Err(after)) => assert_eq!(before, after),
            (before, after) => panic!("{before:?} became {after:?} at {len}"),
        }
        last = Some(now);
    }
});
