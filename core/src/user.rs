//! The user that a token belongs to, and the hash that `$matrix_user_hash` shows.
//!
//! In goes the `user_id` of a whoami answer (or of a masquerading application service's query), out comes a
//! [`UserHash`]: the 64 bits that the shared table keeps in place of the user, and whose 16 hex digits nginx's `hash`
//! spreads over the Synapse workers. It is made once per lookup; a cached request only reads it.

use sha2::{Digest, Sha256};

use crate::token::Token;

/// A user id that a homeserver could have made: `@localpart:server`.
///
/// At most 255 bytes (Matrix specification, Appendices, "User Identifiers"), starts with `@`, holds a `:`, has no NUL.
/// Everything else is let through on purpose: under "Historical User IDs" the specification obliges servers to accept
/// localparts of any code point but `:` and NUL, even control characters, and the empty one. So a `UserId` must be
/// encoded or hashed before it goes anywhere where such a byte has a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UserId<'a>(&'a str);

impl<'a> UserId<'a> {
    /// The longest user id, in bytes, with `@` and server name.
    pub const MAX: usize = 255;

    /// The whole user id.
    pub fn as_str(&self) -> &'a str {
        self.0
    }
}

/// The string is not a user id. It does not carry the string: that came from a stranger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a Matrix user id")]
pub struct NotAUserId;

impl<'a> TryFrom<&'a str> for UserId<'a> {
    type Error = NotAUserId;

    fn try_from(id: &'a str) -> Result<Self, NotAUserId> {
        let fits = id.len() <= Self::MAX && id.starts_with('@');
        if fits && id.contains(':') && !id.contains('\0') {
            Ok(Self(id))
        } else {
            Err(NotAUserId)
        }
    }
}

/// What stands for a user in the table, in logs and in nginx's `hash`: 64 bits of SHA-256.
///
/// It has no key, so that every nginx in front of the same Synapse workers agrees with no coordination, and an operator
/// finds a user with `printf %s @alice:example.org | sha256sum | cut -c1-16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UserHash(u64);

impl UserHash {
    /// The first 64 bits of SHA-256 of the full user id.
    pub fn of_user(user: &UserId<'_>) -> Self {
        Self::of(user.0.as_bytes())
    }

    /// The fallback where the user is not known: the same hash of the token, so that at least each token keeps its
    /// Synapse worker.
    pub fn of_token(token: &Token<'_>) -> Self {
        Self::of(token.as_bytes())
    }

    fn of(bytes: &[u8]) -> Self {
        let digest = Sha256::digest(bytes);
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Self(u64::from_be_bytes(first))
    }

    /// The 16 lower-case hex digits of `$matrix_user_hash`, first digit first.
    ///
    /// Eight digits at a time, in about 20 instructions: it is written for every request, and a loop over the digits
    /// took 1,800 (callgrind).
    pub fn hex(&self) -> [u8; 16] {
        let mut digits = [0; 16];
        let (high, low) = digits.split_at_mut(8);
        high.copy_from_slice(&eight_digits(self.0 >> 32));
        low.copy_from_slice(&eight_digits(self.0 & 0xffff_ffff));
        digits
    }

    /// The hash whose digits [`Self::hex`] gave. Other bytes than lower-case hex digits give some hash.
    pub fn from_hex(digits: &[u8; 16]) -> Self {
        let (high, low) = digits.split_at(8);
        let bits = |eight: &[u8]| {
            of_eight_digits(u64::from_be_bytes(eight.try_into().unwrap_or_default()))
        };
        Self(bits(high) << 32 | bits(low))
    }

    /// As [`Self::to_bits`] gave it.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// For the table's entry; the first hex digit is the highest four bits.
    pub const fn to_bits(self) -> u64 {
        self.0
    }
}

/// The hex digits of the lower 32 bits; the upper ones are 0.
fn eight_digits(bits: u64) -> [u8; 8] {
    // One nibble to each byte, halving the distance three times.
    let mut nibbles = bits;
    nibbles = (nibbles << 16 | nibbles) & 0x0000_ffff_0000_ffff;
    nibbles = (nibbles << 8 | nibbles) & 0x00ff_00ff_00ff_00ff;
    nibbles = (nibbles << 4 | nibbles) & 0x0f0f_0f0f_0f0f_0f0f;
    // 10 and more carry into the next nibble when 6 is added: those are letters, and `a` is 0x27 past `9` + 1.
    let letters = (nibbles + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    (nibbles + 0x3030_3030_3030_3030 + letters * 0x27).to_be_bytes()
}

/// Whether a token may speak for other users than its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Masquerade {
    /// It has a device, so it is an ordinary user's.
    No,
    /// whoami named no device: it may be an application service's.
    Maybe,
    /// It has no device and was asked to speak for another user, and did not: an admin-minted token.
    Never,
}

/// The inverse of [`eight_digits`].
fn of_eight_digits(digits: u64) -> u64 {
    // `a` is 0x61: its lower four bits are 1, where 10 is meant. Bit 6 tells letters from digits.
    let letters = digits >> 6 & 0x0101_0101_0101_0101;
    let mut bits = (digits & 0x0f0f_0f0f_0f0f_0f0f) + letters * 9;
    // Halves the distance of the nibbles three times. What a nibble leaves behind is cut off.
    bits = (bits >> 4 | bits) & 0x00ff_00ff_00ff_00ff;
    bits = (bits >> 8 | bits) & 0x0000_ffff_0000_ffff;
    (bits >> 16 | bits) & 0xffff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_hash_is_what_sha256sum_and_cut_give() {
        // printf %s @alice:example.org | sha256sum | cut -c1-16
        let alice = UserId::try_from("@alice:example.org").unwrap();
        assert_eq!(&UserHash::of_user(&alice).hex(), b"86f01aef21b1acd3");
        // printf %s '@björn:example.org' | sha256sum | cut -c1-16
        let bjorn = UserId::try_from("@björn:example.org").unwrap();
        assert_eq!(&UserHash::of_user(&bjorn).hex(), b"9209a08bc62d9980");
    }

    #[test]
    fn the_fallback_is_the_same_hash_of_the_token() {
        // printf %s mat_aBcDeFgHiJkLmNoPqRsTuVwXyZ0123_4567ab | sha256sum | cut -c1-16
        let token = Token::new(b"mat_aBcDeFgHiJkLmNoPqRsTuVwXyZ0123_4567ab").unwrap();
        assert_eq!(&UserHash::of_token(&token).hex(), b"951e3d5239da0f2b");
    }

    #[test]
    fn hex_keeps_leading_zeros() {
        assert_eq!(&UserHash::from_bits(0x0a).hex(), b"000000000000000a");
    }

    #[test]
    fn historical_user_ids_are_user_ids() {
        for id in [
            "@:example.org",
            "@Alice Smith:example.org",
            "@a\tb:h",
            "@björn:example.org",
            "@a:b:8448",
        ] {
            assert_eq!(UserId::try_from(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn what_no_homeserver_could_have_made_is_not_a_user_id() {
        for id in [
            "",
            "@",
            "alice:example.org",
            "@alice",
            " @alice:example.org",
            "@al\0ice:example.org",
        ] {
            assert_eq!(UserId::try_from(id), Err(NotAUserId), "{id:?}");
        }
    }

    #[test]
    fn a_user_id_has_at_most_255_bytes() {
        let longest = format!("@{}:example.org", "a".repeat(UserId::MAX - 13));
        assert_eq!(longest.len(), UserId::MAX);
        assert!(UserId::try_from(longest.as_str()).is_ok());
        assert!(UserId::try_from(format!("{longest}x").as_str()).is_err());
    }

    proptest! {
        #[test]
        fn hex_is_how_the_standard_library_prints_the_bits(bits: u64) {
            let hash = UserHash::from_bits(bits);
            prop_assert_eq!(hash.to_bits(), bits);
            prop_assert_eq!(UserHash::from_hex(&hash.hex()), hash);
            prop_assert_eq!(hash.hex().to_vec(), format!("{bits:016x}").into_bytes());
        }
    }
}
