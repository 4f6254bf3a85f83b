//! What is asked: between the client's request and the core's bytes.

use core::ptr::NonNull;

use matrix_user_hash_core::engine::Question;
use matrix_user_hash_core::key::Key;
use matrix_user_hash_core::query;
use matrix_user_hash_core::token::Token;
use matrix_user_hash_core::whoami::{self, DEVICE_MAX, DeviceParam, Masquerade};
use matrix_user_hash_core::wipe::{Room, Wiped};

use crate::conf::target::Target;
use crate::fault::{self, Place};
use crate::location::{Location, parts};
use crate::ngx::memory;
use crate::ngx::request::Request;
use crate::variables;

/// A question, ready to be sent.
pub(super) struct Written {
    /// The HTTP request.
    pub bytes: Wiped,
    /// The user that an application service wants to be.
    pub asked: Option<String>,
    /// Whose faults are asked for.
    #[cfg(feature = "faults")]
    pub agent: Option<Vec<u8>>,
}

/// Why a question was not written.
pub(super) enum NotWritten {
    /// The request does not ask it, or not any more: `post_action` and `set $args` change what it has.
    Changed,
    /// There is no memory for it.
    NoMemory,
}

/// Writes the whoami request for a question that `client` asks.
pub(super) fn write(
    client: Request,
    location: &Location,
    question: &Question,
    target: &Target,
) -> Result<Written, NotWritten> {
    fault::at(Place::Ask, client.user_agent());
    let indexes = variables::indexes(client);
    let (mut token_room, mut user_room, mut device_room) = (Room::new(), Room::new(), Room::new());
    let token = parts(client)
        .token(&mut token_room)
        .ok_or(NotWritten::Changed)?;
    let masquerade = match question {
        Question::Owner(_) => None,
        Question::Masquerade { .. } => Some(Masquerade {
            user_id: parts(client)
                .named_user(&mut user_room)
                .ok_or(NotWritten::Changed)?,
            device_id: device(client.args(), &mut device_room),
        }),
    };
    if key(location, &token, masquerade.as_ref()) != Some(*question.key()) {
        return Err(NotWritten::Changed);
    }
    let asked = match &masquerade {
        Some(masquerade) => {
            Some(memory::text(masquerade.user_id.as_str()).ok_or(NotWritten::NoMemory)?)
        }
        None => None,
    };
    let forwarded_for = match NonNull::new(location.conf.forwarded_for) {
        // SAFETY: it belongs to the configuration of the client's location.
        Some(value) => unsafe { client.evaluate(value) },
        None => client.variable(indexes.forwarded_for),
    };
    let request = whoami::Request {
        path: &target.path,
        host: &target.host,
        token: &token,
        user_agent: client.user_agent(),
        forwarded_for: forwarded_for.unwrap_or_default(),
        remote_addr: client.address(),
        forwarded_proto: client.variable(indexes.scheme).unwrap_or_default(),
        masquerade,
    };
    let mut bytes = memory::with_capacity(request.len()).ok_or(NotWritten::NoMemory)?;
    request.write(&mut bytes);
    Ok(Written {
        bytes: bytes.into(),
        asked,
        #[cfg(feature = "faults")]
        agent: client.user_agent().map(<[u8]>::to_vec),
    })
}

/// The key of what a request asks.
fn key(location: &Location, token: &Token<'_>, masquerade: Option<&Masquerade<'_>>) -> Option<Key> {
    let secret = location.zone.ready()?.secret();
    Some(match masquerade {
        None => secret.token(token),
        Some(masquerade) => secret.masquerade(token, &masquerade.user_id),
    })
}

/// The device that an application service names; the stable name first, as Synapse reads them.
fn device<'a>(args: &'a [u8], room: &'a mut Room<DEVICE_MAX>) -> Option<(DeviceParam, &'a [u8])> {
    let param = [DeviceParam::Stable, DeviceParam::Msc3202]
        .into_iter()
        .find(|param| query::has(args, param.name().as_bytes()))?;
    query::first(args, param.name().as_bytes(), room).map(|device| (param, device))
}
