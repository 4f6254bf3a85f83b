//! From a request to the hash of its user: everything that needs no nginx.
//!
//! In the order of a request's life: [`token`] finds who asks (with [`query`] reading the arguments), [`key`] makes
//! of it what may be stored, [`whoami`] writes the question to the homeserver and reads the answer, and [`user`]
//! makes of the answer what `$matrix_user_hash` shows.
//!
//! Nothing in this crate stores, prints or returns in an error a token or a part of one.

#![forbid(unsafe_code)]

pub mod engine;
pub mod key;
pub mod metrics;
#[cfg(test)]
mod model;
pub mod negative;
pub mod query;
pub mod reserve;
pub mod shift;
pub mod shm;
pub mod state;
pub mod sync;
pub mod time;
pub mod token;
pub mod user;
pub mod whoami;
pub mod wipe;
