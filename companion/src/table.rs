//! Which path is for whom: the facts of Synapse's worker documentation and of what its workers register, as one table.
//!
//! In goes nothing, out come the routes in the order in which nginx tries them. Each names the roles that can serve it,
//! best first; where a deployment has none of them, main serves it. `scripts/companion-test` holds this table against
//! every endpoint that an installed Synapse registers, so a new Synapse that moves one is noticed there.
//!
//! The patterns use what PCRE and the crate regex read alike, for `route` must see what nginx sees. They are matched
//! against the decoded path, as nginx does it.

use crate::model::{Role, Stream};

/// The versions of the client API, for `{V}` in a path.
pub(crate) const VERSIONS: &str = "(?:api/v1|r0|v1|v2|v3|unstable(?:/[^/]+)?)";

/// Where a route lives in the rendered files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    /// Everything that clients call.
    Client,
    /// Under `/_synapse/admin/`, which may be closed to strangers.
    Admin,
    /// Under `/_synapse/mas/`, which is for the Matrix Authentication Service alone.
    Mas,
    /// Under `/_matrix/media/`: clients and, in older versions, other servers call it.
    LegacyMedia,
    /// Under `/_matrix/federation/`, with room for large transactions.
    Federation,
    /// Under `/_matrix/key/`.
    Key,
}

impl Section {
    /// The name of its file.
    pub(crate) const fn file(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Admin => "admin",
            Self::Mas => "mas",
            Self::LegacyMedia => "media",
            Self::Federation => "federation",
            Self::Key => "key",
        }
    }

    /// All, in the order in which their files are written.
    pub(crate) const ALL: [Self; 6] = [
        Self::Client,
        Self::Admin,
        Self::Mas,
        Self::LegacyMedia,
        Self::Federation,
        Self::Key,
    ];
}

/// What besides the path decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    /// Nothing.
    No,
    /// Only these methods; the others go to main.
    Methods(&'static [&'static str]),
    /// A sync without `since`, or with `full_state=true`, is an initial one.
    Since,
    /// `/events` without `from` is an initial one.
    From,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    /// A short name, unique, used for variables.
    pub id: &'static str,
    /// Where it is rendered.
    pub section: Section,
    /// The path; `{V}` stands for the versions of the client API.
    pub path: &'static str,
    /// Roles that can serve it, best first.
    pub to: &'static [Role],
    /// What else decides.
    pub split: Split,
    /// Rendered even when main serves it, so that no later pattern takes it.
    pub pinned: bool,
    /// Whether its specification lets a client repeat a POST, so that nginx may too.
    pub repeats_post: bool,
    /// The reason, as an operator reads it.
    pub why: &'static str,
}

impl Route {
    /// The path as nginx reads it.
    pub(crate) fn pattern(&self) -> String {
        self.path.replace("{V}", VERSIONS)
    }
}

const fn route(
    id: &'static str,
    section: Section,
    path: &'static str,
    to: &'static [Role],
    why: &'static str,
) -> Route {
    Route {
        id,
        section,
        path,
        to,
        split: Split::No,
        pinned: false,
        repeats_post: false,
        why,
    }
}

const fn split(split: Split, route: Route) -> Route {
    Route { split, ..route }
}

const fn repeats_post(route: Route) -> Route {
    Route {
        repeats_post: true,
        ..route
    }
}

const fn pinned(route: Route) -> Route {
    Route {
        pinned: true,
        ..route
    }
}

use Role::{
    ClientReader, FederationInbound, FederationReader, InitialSync, Media, Room, SlidingSync, Sync,
    UserDirectory, Writer,
};
use Section::{Admin, Client, Federation, Key, LegacyMedia, Mas};

/// Every route, in the order in which nginx tries them within a section.
pub(crate) const ROUTES: &[Route] = &[
    pinned(route(
        "rendezvous",
        Client,
        "^/(?:_matrix/client/{V}|_synapse/client)/rendezvous(?:/|$)",
        &[],
        "QR-code login (MSC4108, MSC4388): a rendezvous session lives in the memory of one process",
    )),
    pinned(route(
        "sso",
        Client,
        "^/(?:_matrix/client/{V}/login/(?:sso/redirect|cas/ticket)|_synapse/client/(?:pick_idp|pick_username|new_user_consent|sso_register|oidc|saml2)(?:/|$))",
        &[],
        "single sign-on: one process has to see the whole of a login",
    )),
    pinned(route(
        "main_only",
        Client,
        "^/_matrix/client/{V}/(?:(?:logout|refresh|tokenrefresh|pushers|thirdparty|account_validity|account/password|account/3pid/(?:add|bind|delete|unbind|email|msisdn)|register/(?:email|msisdn)|directory/list|auth)(?:/|$)|rooms/[^/]+/(?:upgrade|forget|report)(?:/|$)|user/[^/]+/openid/)",
        &[],
        "only the main process registers it",
    )),
    route(
        "typing",
        Client,
        "^/_matrix/client/{V}/rooms/[^/]+/typing(?:/|$)",
        &[Writer(Stream::Typing)],
        "the writer of the stream typing",
    ),
    route(
        "to_device",
        Client,
        "^/_matrix/client/{V}/sendToDevice/",
        &[Writer(Stream::ToDevice)],
        "the writer of the stream to_device",
    ),
    route(
        "account_data",
        Client,
        "^/_matrix/client/{V}/user/.+/(?:tags|account_data)(?:/|$)",
        &[Writer(Stream::AccountData)],
        "the writer of the stream account_data",
    ),
    route(
        "receipts",
        Client,
        "^/_matrix/client/{V}/rooms/[^/]+/(?:receipt|read_markers)(?:/|$)",
        &[Writer(Stream::Receipts)],
        "a writer of the stream receipts",
    ),
    route(
        "presence",
        Client,
        "^/_matrix/client/{V}/presence/",
        &[Writer(Stream::Presence)],
        "the writer of the stream presence",
    ),
    route(
        "push_rules",
        Client,
        "^/_matrix/client/{V}/pushrules/",
        &[Writer(Stream::PushRules)],
        "the writer of the stream push_rules",
    ),
    route(
        "device_lists",
        Client,
        "^/_matrix/client/{V}/(?:delete_devices$|devices(?:/|$)|keys/upload(?:/|$)|keys/(?:device_signing|signatures)/upload$)",
        &[Writer(Stream::DeviceLists)],
        "a writer of the stream device_lists",
    ),
    route(
        "thread_subscriptions",
        Client,
        "^/_matrix/client/{V}/(?:rooms/[^/]+/thread/.+/subscription|thread_subscriptions)$",
        &[Writer(Stream::ThreadSubscriptions)],
        "a writer of the stream thread_subscriptions (MSC4306)",
    ),
    route(
        "quarantined_media_changes",
        Admin,
        "^/_synapse/admin/v1/(?:quarantine_media/|media/(?:un)?quarantine/|(?:room|user)/[^/]+/media/quarantine$)",
        &[Writer(Stream::QuarantinedMediaChanges), Media],
        "quarantines media: a media repository that writes the stream quarantined_media_changes, because another one fails",
    ),
    route(
        "media_client",
        Client,
        "^/_matrix/client/v1/media/",
        &[Media],
        "the media repository",
    ),
    route(
        "media_legacy",
        LegacyMedia,
        "^/_matrix/media/",
        &[Media],
        "the media repository, from before authenticated media",
    ),
    route(
        "media_admin",
        Admin,
        "^/_synapse/admin/v1/(?:purge_media_cache$|(?:room|user)/.+/media|media/|users/[^/]+/media$)",
        &[Media],
        "administration of the media repository",
    ),
    // A client that got no answer asks again with the same `pos` (MSC4186), so nginx may ask again as well.
    repeats_post(route(
        "sliding_sync",
        Client,
        "^/_matrix/client/(?:v4|unstable/org\\.matrix\\.simplified_msc3575)/sync$",
        &[SlidingSync, Sync],
        "simplified sliding sync (MSC4186), by user",
    )),
    split(
        Split::Since,
        route(
            "sync",
            Client,
            "^/_matrix/client/(?:r0|v3|unstable)/sync$",
            &[Sync],
            "sync, by user",
        ),
    ),
    split(
        Split::From,
        route(
            "events",
            Client,
            "^/_matrix/client/(?:api/v1|r0|v3|unstable)/events$",
            &[Sync],
            "the older event stream, by user",
        ),
    ),
    route(
        "initial_sync",
        Client,
        "^/_matrix/client/(?:api/v1|r0|v3|unstable)/(?:rooms/[^/]+/)?initialSync$",
        &[InitialSync, Sync],
        "a sync from nothing, by user",
    ),
    route(
        "user_directory",
        Client,
        "^/_matrix/client/{V}/user_directory/search$",
        &[UserDirectory, ClientReader],
        "a search in the user directory",
    ),
    route(
        "room",
        Client,
        "^/_matrix/client/{V}/(?:rooms/[^/]+/(?:messages$|(?:redact|send|state)/|(?:join|invite|leave|ban|unban|kick)(?:/|$))|(?:join|knock)/)",
        &[Room],
        "events of one room and its pages: all of a room on one worker, by room id",
    ),
    route(
        "room_read",
        Client,
        "^/_matrix/client/{V}/(?:rooms/[^/]+/(?:joined_members|members|state|hierarchy|threads|timestamp_to_event|aliases|summary|is_joined)$|rooms/[^/]+/(?:context|event|relations)/|(?:room_summary|summary)/)",
        &[Room, ClientReader],
        "reads one room: its worker by room id, or else a client reader",
    ),
    route(
        "client",
        Client,
        "^/_matrix/client/(?:versions$|{V}/(?:createRoom(?:/|$)|publicRooms$|account/(?:3pid|whoami|deactivate)$|voip/turnServer$|joined_rooms$|search$|user/[^/]+/filter(?:/|$)|directory/room/|capabilities$|notifications$|events/|profile/))",
        &[ClientReader],
        "any generic worker can answer it",
    ),
    route(
        "client_unlisted",
        Client,
        "^/_matrix/client/{V}/(?:auth_metadata$|appservice/[^/]+/ping$|appservice/fed_proxy$|retention/configuration$|rtc/transports$|account_status$|dehydrated_device(?:$|/))",
        &[ClientReader],
        "any generic worker registers it, though Synapse's worker documentation does not list it",
    ),
    route(
        "encryption",
        Client,
        "^/_matrix/client/{V}/(?:keys/(?:query|changes|claim)$|room_keys/)",
        &[ClientReader],
        "encryption keys: any generic worker can answer it",
    ),
    route(
        "login",
        Client,
        "^/_matrix/client/{V}/(?:login|register|register/available|register/m\\.login\\.registration_token/validity|password_policy)$",
        &[ClientReader],
        "registration and login: any generic worker can answer it",
    ),
    route(
        "delayed_events",
        Client,
        "^/_matrix/client/unstable/org\\.matrix\\.msc4140/delayed_events(?:/.+/restart)?$",
        &[ClientReader],
        "delayed events (MSC4140): a list or a restart; anything else that changes one is main's",
    ),
    split(
        Split::Methods(&["GET", "HEAD"]),
        route(
            "delayed_event",
            Client,
            "^/_matrix/client/unstable/org\\.matrix\\.msc4140/delayed_events/[^/]+$",
            &[ClientReader],
            "one delayed event (MSC4140): any generic worker can read it, only main can change it",
        ),
    ),
    route(
        "admin_room",
        Admin,
        "^/_synapse/admin/v1/rooms/[^/]+$",
        &[ClientReader],
        "a room's details: any generic worker can answer it",
    ),
    split(
        Split::Methods(&["GET", "HEAD"]),
        route(
            "admin_user",
            Admin,
            "^/_synapse/admin/v2/users/[^/]+$",
            &[ClientReader],
            "a user's details: a generic worker can read them, only main can change them",
        ),
    ),
    route(
        "mas",
        Mas,
        "^/_synapse/mas/",
        &[ClientReader],
        "what the Matrix Authentication Service asks of Synapse: any generic worker can answer it",
    ),
    route(
        "media_federation",
        Federation,
        "^/_matrix/federation/v1/media/",
        &[Media],
        "the media repository, asked by another server",
    ),
    route(
        "federation_send",
        Federation,
        "^/_matrix/federation/v1/send/",
        &[FederationInbound, FederationReader],
        "transactions of another server: all of one server on one worker",
    ),
    // Without openid/userinfo and MSC4370's extremities: Synapse 1.163.2 registers them on workers too, but answers them
    // with 500 there, for the store of a worker has no `get_user_id_for_open_id_token` and no
    // `get_forward_extremities_for_room`.
    route(
        "federation",
        Federation,
        "^/_matrix/federation/(?:v1/(?:version$|publicRooms|3pid/onbind$|user/(?:devices|keys)/|(?:event|state|state_ids|backfill|get_missing_events|query|make_join|make_leave|make_knock|send_join|send_leave|send_knock|invite|event_auth|timestamp_to_event|exchange_third_party_invite|hierarchy)/)|v2/(?:send_join|send_leave|invite)/|unstable/(?:rooms/[^/]+/complexity$|user/keys/claim$|org\\.matrix\\.msc3720/query/account_status$))",
        &[FederationReader],
        "federation: any generic worker can answer it; one server's questions on one worker",
    ),
    route(
        "key_query",
        Key,
        "^/_matrix/key/v2/query(?:/|$)",
        &[FederationReader],
        "keys of other servers: any generic worker can answer it",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_pattern_compiles_and_every_id_is_one() {
        let mut ids = BTreeSet::new();
        for route in ROUTES {
            regex::Regex::new(&route.pattern()).unwrap();
            assert!(ids.insert(route.id), "{} twice", route.id);
        }
    }

    #[test]
    fn no_pattern_holds_what_nginx_would_read_as_syntax() {
        for route in ROUTES {
            let pattern = route.pattern();
            assert!(
                !pattern.contains(['{', '}', ';', ' ', '"', '\'', '#']),
                "{pattern}"
            );
        }
    }
}
