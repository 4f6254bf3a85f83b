//! What workers serve: one row for each type of worker.

use super::{Resource, Spread};

/// What a worker serves. One worker may have several. What is known of each stands in its [`Row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Role {
    /// `/sync` and its relatives, by user.
    Sync,
    /// Syncs that start from nothing, apart from the others because they are dear.
    InitialSync,
    /// Simplified sliding sync (MSC4186), where it has workers of its own.
    SlidingSync,
    /// What is about one room, by its id.
    Room,
    /// The rest of the client API that any generic worker can serve.
    ClientReader,
    /// The federation API, by the server that asks.
    FederationReader,
    /// Transactions of other servers (`/send/`), where they have workers of their own.
    FederationInbound,
    /// The media repository.
    Media,
    /// Searches in the user directory.
    UserDirectory,
    /// The writer of one stream.
    Writer(Stream),
    /// Known to Synapse, takes no request from outside.
    Nothing(NoRequests),
}

/// Workers that no request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub(crate) enum NoRequests {
    FederationSender,
    Pusher,
    Appservice,
    Background,
    EventPersister,
}

/// What is known of a role.
#[derive(Clone, Copy, Debug)]
struct Row {
    role: Role,
    /// The name in a deployment file.
    name: &'static str,
    /// Which of a worker's listeners it needs.
    resource: Resource,
    /// What its requests are spread by, unless the deployment file says something else.
    spread: Spread,
    /// What its group is for, as the comment of the upstream says it.
    purpose: &'static str,
}

/// All roles. `generic` and `event_creator` are not here: they stand for others.
const ROWS: [Row; 23] = [
    Row {
        role: Role::Sync,
        name: "sync",
        resource: Resource::Client,
        spread: Spread::User,
        purpose: "syncs: every device of a user on one worker",
    },
    Row {
        role: Role::InitialSync,
        name: "initial_sync",
        resource: Resource::Client,
        spread: Spread::User,
        purpose: "syncs from nothing, which would hold up the others",
    },
    Row {
        role: Role::SlidingSync,
        name: "sliding_sync",
        resource: Resource::Client,
        spread: Spread::User,
        purpose: "simplified sliding sync: every device of a user on one worker",
    },
    Row {
        role: Role::Room,
        name: "room",
        resource: Resource::Client,
        spread: Spread::Room,
        purpose: "what is about one room: all of a room on one worker",
    },
    Row {
        role: Role::ClientReader,
        name: "client_reader",
        resource: Resource::Client,
        spread: Spread::Turns,
        purpose: "the rest of the client API that a worker can serve",
    },
    Row {
        role: Role::FederationReader,
        name: "federation_reader",
        resource: Resource::Federation,
        spread: Spread::Server,
        purpose: "federation: all of another server on one worker",
    },
    Row {
        role: Role::FederationInbound,
        name: "federation_inbound",
        resource: Resource::Federation,
        spread: Spread::Server,
        purpose: "transactions of other servers: all of one server on one worker",
    },
    Row {
        role: Role::Media,
        name: "media",
        resource: Resource::Media,
        spread: Spread::Turns,
        purpose: "the media repository",
    },
    Row {
        role: Role::UserDirectory,
        name: "user_dir",
        resource: Resource::Client,
        spread: Spread::Turns,
        purpose: "searches in the user directory",
    },
    writer(Stream::Typing, Resource::Client),
    writer(Stream::ToDevice, Resource::Client),
    writer(Stream::AccountData, Resource::Client),
    writer(Stream::Receipts, Resource::Client),
    writer(Stream::Presence, Resource::Client),
    writer(Stream::PushRules, Resource::Client),
    writer(Stream::DeviceLists, Resource::Client),
    writer(Stream::ThreadSubscriptions, Resource::Client),
    // Only a process that has the media repository can quarantine media.
    writer(Stream::QuarantinedMediaChanges, Resource::Media),
    nothing(NoRequests::FederationSender, "federation_sender"),
    nothing(NoRequests::Pusher, "pusher"),
    nothing(NoRequests::Appservice, "appservice"),
    nothing(NoRequests::Background, "background"),
    nothing(NoRequests::EventPersister, "event_persister"),
];

const fn writer(stream: Stream, resource: Resource) -> Row {
    Row {
        role: Role::Writer(stream),
        name: stream.name(),
        resource,
        spread: Spread::Turns,
        purpose: "the writer of a stream",
    }
}

const fn nothing(what: NoRequests, name: &'static str) -> Row {
    Row {
        role: Role::Nothing(what),
        name,
        resource: Resource::Client,
        spread: Spread::Turns,
        purpose: "no request is for it",
    }
}

impl Role {
    /// The roles whose requests wait for news.
    pub(crate) const SYNCS: [Self; 3] = [Self::Sync, Self::InitialSync, Self::SlidingSync];

    /// What a generic worker without duties of its own serves.
    pub(crate) const GENERIC: [Self; 4] = [
        Self::Sync,
        Self::Room,
        Self::ClientReader,
        Self::FederationReader,
    ];

    /// All, in the order of their rows.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        ROWS.iter().map(|row| row.role)
    }

    /// Those that take requests.
    pub(crate) fn asked() -> impl Iterator<Item = Self> {
        Self::all().filter(|role| role.takes_requests())
    }

    /// The role of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        ROWS.iter().find(|row| row.name == name).map(|row| row.role)
    }

    /// The roles that a name stands for: one, or the four of `generic`.
    pub(crate) fn from_name(name: &str) -> Option<Vec<Self>> {
        match name {
            "generic" => Some(Self::GENERIC.to_vec()),
            // Synapse's older name for workers that send events: both are about one room.
            "event_creator" => Some(vec![Self::Room]),
            _ => Self::named(name).map(|role| vec![role]),
        }
    }

    /// Every name that [`Self::from_name`] knows.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        ["generic", "event_creator"]
            .into_iter()
            .chain(Self::all().map(Self::name))
    }

    fn row(self) -> Row {
        // A test finds every role.
        let found = ROWS.into_iter().find(|row| row.role == self);
        found.unwrap_or(ROWS[0])
    }

    /// The name in a deployment file.
    pub(crate) fn name(self) -> &'static str {
        self.row().name
    }

    /// Which of a worker's listeners it needs.
    pub(crate) fn resource(self) -> Resource {
        self.row().resource
    }

    /// What its requests are spread by, unless the deployment file says something else.
    pub(crate) fn spread(self) -> Spread {
        self.row().spread
    }

    /// What its group is for, as a comment says it.
    pub(crate) fn purpose(self) -> &'static str {
        self.row().purpose
    }

    /// Whether its requests wait for news.
    pub(crate) fn waits(self) -> bool {
        Self::SYNCS.contains(&self)
    }

    /// Whether any request is for it.
    pub(crate) const fn takes_requests(self) -> bool {
        !matches!(self, Self::Nothing(_))
    }
}

/// Streams whose endpoints go to their writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(
    missing_docs,
    reason = "each is Synapse's name of the stream, nothing more"
)]
pub(crate) enum Stream {
    Typing,
    ToDevice,
    AccountData,
    Receipts,
    Presence,
    PushRules,
    DeviceLists,
    ThreadSubscriptions,
    QuarantinedMediaChanges,
}

impl Stream {
    /// All, in the order of Synapse's `WriterLocations`.
    pub(crate) const ALL: [Self; 9] = [
        Self::Typing,
        Self::ToDevice,
        Self::AccountData,
        Self::Receipts,
        Self::Presence,
        Self::PushRules,
        Self::DeviceLists,
        Self::ThreadSubscriptions,
        Self::QuarantinedMediaChanges,
    ];

    /// The key in `stream_writers`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Typing => "typing",
            Self::ToDevice => "to_device",
            Self::AccountData => "account_data",
            Self::Receipts => "receipts",
            Self::Presence => "presence",
            Self::PushRules => "push_rules",
            Self::DeviceLists => "device_lists",
            Self::ThreadSubscriptions => "thread_subscriptions",
            Self::QuarantinedMediaChanges => "quarantined_media_changes",
        }
    }

    /// Whether Synapse refuses a second writer (synapse/config/workers.py, `WorkerConfig.read_config`).
    pub(crate) const fn single_writer(self) -> bool {
        matches!(
            self,
            Self::Typing | Self::ToDevice | Self::AccountData | Self::Presence | Self::PushRules
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_role_is_found_by_its_name() {
        for role in Role::all() {
            assert_eq!(Role::from_name(role.name()), Some(vec![role]));
            assert_eq!(role.row().role, role);
        }
    }

    /// The next role, in an order of its own: the compiler demands a line here for each that is added.
    const fn next(role: Role) -> Option<Role> {
        Some(match role {
            Role::Sync => Role::InitialSync,
            Role::InitialSync => Role::SlidingSync,
            Role::SlidingSync => Role::Room,
            Role::Room => Role::ClientReader,
            Role::ClientReader => Role::FederationReader,
            Role::FederationReader => Role::FederationInbound,
            Role::FederationInbound => Role::Media,
            Role::Media => Role::UserDirectory,
            Role::UserDirectory => Role::Nothing(NoRequests::FederationSender),
            Role::Nothing(what) => match what {
                NoRequests::FederationSender => Role::Nothing(NoRequests::Pusher),
                NoRequests::Pusher => Role::Nothing(NoRequests::Appservice),
                NoRequests::Appservice => Role::Nothing(NoRequests::Background),
                NoRequests::Background => Role::Nothing(NoRequests::EventPersister),
                NoRequests::EventPersister => return None,
            },
            Role::Writer(_) => return None,
        })
    }

    #[test]
    fn every_role_has_one_row() {
        let simple = std::iter::successors(Some(Role::Sync), |role| next(*role));
        let mut roles: Vec<Role> = simple.chain(Stream::ALL.map(Role::Writer)).collect();
        let mut rows: Vec<Role> = Role::all().collect();
        roles.sort();
        rows.sort();
        assert_eq!(rows, roles);
    }
}
