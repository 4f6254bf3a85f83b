//! What stands for a token wherever something is remembered about it.
//!
//! In goes a token (with the user that an application service names, if any), out comes a [`Key`] of 128 bits: the
//! only trace of a token in shared memory, in the state file and in the caches of worker processes. It is made for every
//! request that has a token, before the table is read.
//!
//! The digest is SipHash-2-4-128 under a [`Secret`] of the zone: who does not know the secret can neither recognise a
//! token by its key nor choose tokens whose keys collide (Aumasson and Bernstein, "SipHash: a fast short-input PRF").

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::token::Token;
use crate::user::UserId;

/// The zone's secret: 16 bytes from the system's random source, made with the zone and kept as long as its keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret([u8; 16]);

/// Says that there is one, and nothing about it.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// The caller vouches that the bytes are random, or were once [`Self::as_bytes`] of such a secret.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// For shared memory and the state file, where it stands beside the keys that it made.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The key of a token that speaks for its own user.
    pub fn token(&self, token: &Token<'_>) -> Key {
        self.digest(token.as_bytes(), None)
    }

    /// The key of an application service's token that speaks for `user`.
    pub fn masquerade(&self, token: &Token<'_>, user: &UserId<'_>) -> Key {
        self.digest(token.as_bytes(), Some(user.as_str().as_bytes()))
    }

    /// Digests `token` alone, or `token`, NUL, `user`.
    ///
    /// That encoding is injective, so equal keys mean equal questions (but for a collision of 128 bits): a [`Token`]
    /// has no NUL, so the bytes hold a NUL if and only if there is a user, and what is before the first NUL is the
    /// token, what is after it the user.
    fn digest(&self, token: &[u8], user: Option<&[u8]>) -> Key {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        let digest = match user {
            // In one piece, as nearly every request has it: 60 instructions less of 400 (callgrind).
            None => hasher.hash(token),
            Some(user) => {
                hasher.write(token);
                hasher.write(&[0]);
                hasher.write(user);
                hasher.finish128()
            }
        };
        Key([digest.h1, digest.h2])
    }
}

/// 128 bits that stand for a token, or for a token and the user it speaks for. Compared whole.
///
/// Not the token and no part of one; but two requests with the same key have the same token, so it is not logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u64; 2]);

impl Key {
    /// Both halves, each as good as random.
    pub const fn words(&self) -> [u64; 2] {
        self.0
    }

    /// As [`Self::words`] gave them.
    pub const fn from_words(words: [u64; 2]) -> Self {
        Self(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: Secret =
        Secret::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);

    fn token(bytes: &[u8]) -> Token<'_> {
        Token::new(bytes).unwrap()
    }

    #[test]
    fn in_pieces_the_digest_is_that_of_the_whole() {
        for (token, user) in [
            ("mat_a", "@a:b"),
            ("syt_YWxpY2U_kQzPvXwR", "@alice:example.org"),
        ] {
            let whole = [token.as_bytes(), &[0], user.as_bytes()].concat();
            let pieces = SECRET.digest(token.as_bytes(), Some(user.as_bytes()));
            assert_eq!(pieces, SECRET.digest(&whole, None));
        }
    }

    #[test]
    fn the_digest_is_siphash_2_4_128() {
        // The reference's vectors (github veorq/SipHash, vectors.h, vectors_sip128) digest 00 01 02 …, which is no
        // token; digest() takes any bytes. Little-endian: a3 81 7f 04 ba 25 a8 e6 6d f6 72 14 c7 55 02 93 for none.
        let empty = SECRET.digest(b"", None);
        assert_eq!(
            empty.words(),
            [0xe6a8_25ba_047f_81a3, 0x9302_55c7_1472_f66d]
        );
        // da 87 c1 d8 6b 99 af 44 34 76 59 11 9b 22 fc 45 for the one byte 00.
        let zero = SECRET.digest(&[0], None);
        assert_eq!(zero.words(), [0x44af_996b_d8c1_87da, 0x45fc_229b_1159_7634]);
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{SECRET:?}"), "Secret(..)");
    }

    #[test]
    fn another_zone_has_other_keys() {
        let bot = token(b"syt_Ym90_kQzPvXwRtYuIoPlKjHgF_3fQx1a");
        assert_ne!(SECRET.token(&bot), Secret::from_bytes([7; 16]).token(&bot));
    }

    proptest! {
        #[test]
        fn a_key_names_one_token_or_one_token_and_user(
            a in "[!-~]{1,24}", b in "[!-~]{1,24}", u in "@[a-z]{0,4}:[a-z]{1,4}", v in "@[a-z]{0,4}:[a-z]{1,4}",
        ) {
            let (ta, tb) = (token(a.as_bytes()), token(b.as_bytes()));
            let (uu, uv) = (UserId::try_from(u.as_str()).unwrap(), UserId::try_from(v.as_str()).unwrap());
            prop_assert_eq!(SECRET.token(&ta) == SECRET.token(&tb), a == b);
            prop_assert_eq!(SECRET.masquerade(&ta, &uu) == SECRET.masquerade(&tb, &uv), (&a, &u) == (&b, &v));
            prop_assert_ne!(SECRET.token(&ta), SECRET.masquerade(&tb, &uu));
        }

        #[test]
        fn where_the_token_ends_and_the_user_begins_is_part_of_the_key(t in "[!-~]{1,24}", u in "[!-~]{0,4}@[!-~]{1,4}:x") {
            // The same visible bytes, cut elsewhere: all of them as a token, or at the first '@' or the last.
            let all = format!("{t}{u}");
            let cut = |at: usize| {
                let user = UserId::try_from(&all[at..]).ok()?;
                Some(SECRET.masquerade(&Token::new(&all.as_bytes()[..at])?, &user))
            };
            let first = all.find('@').and_then(cut);
            let last = all.rfind('@').and_then(cut);
            let whole = SECRET.token(&token(all.as_bytes()));
            prop_assert_ne!(first, Some(whole));
            prop_assert_ne!(last, Some(whole));
            if all.find('@') != all.rfind('@') {
                prop_assert!(first.is_none() || first != last);
            }
        }

        #[test]
        fn a_key_survives_its_words(words: [u64; 2]) {
            prop_assert_eq!(Key::from_words(words).words(), words);
        }
    }
}
