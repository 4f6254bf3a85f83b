"""The inhabitants of the bed: users with a session for every kind of token that Synapse makes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from .client import AGENT, Session
from .homeserver import SETUP_ADDRESS, SETUP_AGENT, Homeserver
from .synapse import AS_TOKEN

NAMES = ["alice", "bob", "carol", "dora", "erik", "farah", "grace", "heinz", "jonas"]
PROXIED_ONLY = "@jonas:example.org"  # never asks a worker directly: what is known of him came through nginx
GHOSTS = ["irc_ilja", "irc_jana", "irc_kofi", "irc_lena"]
THREADS = 6


@dataclass
class People:
    admin_token: str
    sessions: list[Session] = field(default_factory=list)
    refresh_tokens: dict[str, str] = field(default_factory=dict)  # by access token

    def of(self, user: str) -> list[Session]:
        return [session for session in self.sessions if session.user == user]

    def strange_rows(self, homeserver: Homeserver) -> list[str]:
        """Rows of Synapse's session list that no client and no call of the set-up can have made."""
        known = {session.address for session in self.sessions}
        return [f"{user} from {ip} by {agent!r}" for user, ip, agent in homeserver.session_rows()
                if not (ip in known and agent.startswith(AGENT) or (ip, agent) == (SETUP_ADDRESS, SETUP_AGENT))]


def populate(homeserver: Homeserver) -> People:
    homeserver.register("root", admin=True)
    people = People(homeserver.login("root", "CONSOLE")["access_token"])
    with ThreadPoolExecutor(THREADS) as pool:
        for sessions, refresh_tokens in pool.map(lambda numbered: ordinary(homeserver, people, *numbered),
                                                 enumerate(NAMES)):
            people.sessions += sessions
            people.refresh_tokens |= refresh_tokens
        people.sessions += pool.map(lambda numbered: ghost(homeserver, *numbered), enumerate(GHOSTS))
    bot = homeserver.ghost("irc_bot", "BRIDGE")
    people.sessions.append(Session(bot, "application service", AS_TOKEN, "127.0.40.1"))
    address = "127.0.50.1"
    guest = homeserver.guest(**seen(address))
    people.sessions.append(Session(guest["user_id"], "guest", guest["access_token"], address, device="guest_device"))
    return people


def ordinary(homeserver: Homeserver, people: People, number: int, name: str):
    """A user with three devices, of which each has another kind of token, and an admin who puppets them."""
    user = homeserver.register(name)
    laptop = f"127.0.{10 + number}.1"
    phone = f"203.0.113.{10 + number}"  # seen through another proxy, which says so in X-Forwarded-For
    tablet = f"127.0.{10 + number}.3"
    native = homeserver.login(user, "LAPTOP", **seen(laptop))["access_token"]
    opaque = homeserver.make_opaque(homeserver.login(user, "PHONE", **seen(phone))["access_token"])
    refreshable = homeserver.login(user, "TABLET", refreshable=True, **seen(tablet))
    puppet = homeserver.puppet(user, people.admin_token)
    # By the puppet's token: what the set-up does must not be what fills the session list of the user's devices.
    homeserver.room(name, token=puppet)
    sessions = [
        Session(user, "native", native, laptop, device="LAPTOP"),
        Session(user, "opaque", opaque, phone, device="PHONE", behind_proxy=True),
        Session(user, "refreshable", refreshable["access_token"], tablet, device="TABLET"),
        Session(user, "puppet", puppet, f"127.0.{10 + number}.4"),
    ]
    return sessions, {refreshable["access_token"]: refreshable["refresh_token"]}


def ghost(homeserver: Homeserver, number: int, name: str) -> Session:
    """A bridge's user: one token for all of them, and the query says who. Odd ones name their device, too."""
    device = "BRIDGE"
    user = homeserver.ghost(name, device)
    masquerade = {"user_id": user, **({"device_id": device} if number % 2 else {})}
    return Session(user, "application service's ghost", AS_TOKEN, f"127.0.{41 + number}.1",
                   device=masquerade.get("device_id", ""), masquerade=masquerade)


def refresh(homeserver: Homeserver, people: People) -> None:
    """Every refreshable session gets its next token; the old one ends when the new one is used."""
    for number, session in enumerate(people.sessions):
        refresh_token = people.refresh_tokens.get(session.token)
        if refresh_token:
            people.sessions[number] = session.with_token(
                "refreshed", homeserver.refresh(refresh_token, **seen(session.address)))


def seen(address: str) -> dict[str, str]:
    """How the set-up calls of a session look to Synapse: as its own."""
    return {"address": address, "agent": f"{AGENT} set-up)"}
