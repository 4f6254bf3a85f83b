//! What to do with a request: from its token to its hash, or to a question for the homeserver.
//!
//! For a request whose user is known this is the whole way, so everything on it is inlined and allocates nothing.

use super::status::Status;
use super::{Engine, Outcome, Terms};
use crate::key::Key;
use crate::query;
use crate::time::Millis;
use crate::token::{self, Token};
use crate::user::{Masquerade, UserHash, UserId};
use crate::whoami::{Identity, LookupError};
use crate::wipe::Room;

/// What is asked about a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whose it is.
    Owner(Key),
    /// Whether it may speak for the user that the request names; `owner` is the key of the first question.
    Masquerade {
        /// The key of token and user together.
        key: Key,
        /// The key of the token alone.
        owner: Key,
    },
}

impl Question {
    /// What the table and the flights know it by.
    pub fn key(&self) -> &Key {
        match self {
            Self::Owner(key) | Self::Masquerade { key, .. } => key,
        }
    }

    /// Under which key an answer is kept: that a token never speaks for others is a fact about the token.
    pub(super) fn stored_as(&self, masquerade: Masquerade) -> &Key {
        match self {
            Self::Masquerade { owner, .. } if masquerade == Masquerade::Never => owner,
            _ => self.key(),
        }
    }
}

/// The parts of a request in which a token can be.
#[derive(Clone, Copy)]
pub struct Parts<'r> {
    /// The value of the header `Authorization`.
    pub authorization: Option<&'r [u8]>,
    /// The query, without the `?`.
    pub args: &'r [u8],
}

impl<'r> Parts<'r> {
    /// The request's token; in `room` it is decoded.
    #[inline]
    pub fn token<'a>(&self, room: &'a mut Room<{ Token::MAX }>) -> Option<Token<'a>>
    where
        'r: 'a,
    {
        token::find(self.authorization, self.args, room)
    }

    /// The user that an application service's request names, if it is one that a homeserver could have.
    pub fn named_user<'a>(&self, room: &'a mut Room<{ UserId::MAX }>) -> Option<UserId<'a>>
    where
        'r: 'a,
    {
        let named = query::first(self.args, b"user_id", room)?;
        UserId::try_from(core::str::from_utf8(named).ok()?).ok()
    }
}

/// What comes next for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It goes on.
    Done(Resolution),
    /// The homeserver must be asked.
    Ask(Question),
}

/// How a request came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The value of `$matrix_user_hash`; `None` for a request without a token, which goes round.
    pub hash: Option<UserHash>,
    /// How it was found.
    pub status: Status,
    /// What is to be asked again in the background.
    pub refresh: Option<Question>,
}

impl Resolution {
    /// No token that Synapse would accept.
    pub const ANONYMOUS: Self = Self {
        hash: None,
        status: Status::Anonymous,
        refresh: None,
    };

    fn user(hash: UserHash, status: Status, question: Question) -> Self {
        Self {
            hash: Some(hash),
            status,
            refresh: (status == Status::Stale).then_some(question),
        }
    }

    fn without_user(token: &Token<'_>, status: Status) -> Self {
        Self {
            hash: Some(UserHash::of_token(token)),
            status,
            refresh: None,
        }
    }
}

/// What is known of a key without asking.
enum Known {
    User(Identity, Status),
    Error(LookupError),
    Nothing,
}

impl<W: Copy + Eq, A: Fn(u32) -> bool> Engine<'_, W, A> {
    /// First contact: no allocation, no lock, no system call if the user is known.
    #[inline(always)]
    pub fn arrive(&mut self, parts: Parts<'_>, terms: &Terms, now: Millis) -> Step {
        let mut room = Room::new();
        let step = match parts.token(&mut room) {
            None => Step::Done(Resolution::ANONYMOUS),
            Some(token) => {
                let key = self.zone.secret().token(&token);
                match self.known_of(&key, terms, now) {
                    Known::Nothing => Step::Ask(Question::Owner(key)),
                    Known::Error(error) => {
                        Step::Done(Resolution::without_user(&token, Status::of_error(error)))
                    }
                    Known::User(identity, status) => {
                        self.for_whom(parts, terms, &token, key, identity, status, now)
                    }
                }
            }
        };
        self.count_step(&step);
        step
    }

    /// A request that waited has an outcome. One that has no token any more goes on as one that had none.
    #[inline(never)]
    pub fn resume(
        &mut self,
        parts: Parts<'_>,
        terms: &Terms,
        question: Question,
        outcome: Outcome,
        now: Millis,
    ) -> Step {
        let mut room = Room::new();
        let step = match (parts.token(&mut room), outcome.result, question) {
            (None, ..) => Step::Done(Resolution::ANONYMOUS),
            (Some(token), Err(_), _) => {
                Step::Done(Resolution::without_user(&token, outcome.status))
            }
            (Some(token), Ok(identity), Question::Owner(key)) => {
                self.for_whom(parts, terms, &token, key, identity, outcome.status, now)
            }
            (Some(_), Ok(identity), Question::Masquerade { .. }) => {
                Step::Done(Resolution::user(identity.user, outcome.status, question))
            }
        };
        self.count_step(&step);
        step
    }

    /// A request that can be asked nothing for goes on by its token, if it has one.
    pub fn fall_back(&self, parts: Parts<'_>) -> Resolution {
        let mut room = Room::new();
        match parts.token(&mut room) {
            Some(token) => Resolution::without_user(&token, Status::Error),
            None => Resolution::ANONYMOUS,
        }
    }

    #[inline]
    fn count_step(&self, step: &Step) {
        if let Step::Done(resolution) = step {
            self.count(resolution.status.counter());
        }
    }

    #[inline(always)]
    fn known_of(&mut self, key: &Key, terms: &Terms, now: Millis) -> Known {
        if let Some(entry) = self.zone.table().get(key, now, self.inactive) {
            let identity = Identity {
                user: entry.user,
                masquerade: entry.masquerade,
            };
            if entry.age < terms.fresh {
                return Known::User(identity, Status::Hit);
            }
            if terms.serves_stale {
                return Known::User(identity, Status::Stale);
            }
        }
        match self.negative.get(key, terms.timeout, now) {
            Some(error) => Known::Error(error),
            None => Known::Nothing,
        }
    }

    /// For whom a token speaks whose owner is known: itself, or whom an application service names.
    ///
    /// Only a token without a device may masquerade, so that nobody else fills the table by inventing users.
    #[inline(always)]
    #[allow(
        clippy::too_many_arguments,
        reason = "inlined into the path of every request: a structure would only be taken apart again"
    )]
    fn for_whom(
        &mut self,
        parts: Parts<'_>,
        terms: &Terms,
        token: &Token<'_>,
        owner: Key,
        identity: Identity,
        status: Status,
        now: Millis,
    ) -> Step {
        let named = match identity.masquerade {
            Masquerade::Maybe => self.masquerade(parts, terms, token, owner, now),
            Masquerade::No | Masquerade::Never => None,
        };
        named.unwrap_or_else(|| {
            Step::Done(Resolution::user(
                identity.user,
                status,
                Question::Owner(owner),
            ))
        })
    }

    /// What is known of the user whom the request names beside that token; `None` if it names none.
    #[cold]
    fn masquerade(
        &mut self,
        parts: Parts<'_>,
        terms: &Terms,
        token: &Token<'_>,
        owner: Key,
        now: Millis,
    ) -> Option<Step> {
        let mut room = Room::new();
        let named = parts.named_user(&mut room)?;
        let key = self.zone.secret().masquerade(token, &named);
        let question = Question::Masquerade { key, owner };
        Some(match self.known_of(&key, terms, now) {
            Known::Nothing => Step::Ask(question),
            Known::Error(error) => {
                Step::Done(Resolution::without_user(token, Status::of_error(error)))
            }
            Known::User(named, status) => {
                Step::Done(Resolution::user(named.user, status, question))
            }
        })
    }
}
