"""What a Matrix client does: ask, with a token, from an address, under a name that makes each request findable."""

import hashlib
import http.client
import itertools
import json
from dataclasses import dataclass, field, replace
from enum import Enum
from urllib.parse import urlencode

from tests.bed.client import Client

SYNC = "/_matrix/client/v3/sync"
SLIDING_SYNC = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
SLIDING_SYNC_BODY = {
    "lists": {"all": {"ranges": [[0, 19]], "timeline_limit": 5, "required_state": [["m.room.name", ""]]}},
    "extensions": {"account_data": {"enabled": True}},
}
AGENT = "Element/1.11.89 (Debian; e2e"
numbers = itertools.count(1)


class Carrier(Enum):
    """How a request carries its token; Synapse takes all three."""

    HEADER = "header"
    QUERY = "query"
    ENCODED_QUERY = "percent-encoded query"


@dataclass(frozen=True)
class Session:
    """One device of a user, with one token of it."""

    user: str
    kind: str
    token: str
    address: str
    behind_proxy: bool = False  # the address comes in X-Forwarded-For instead of as the connection's source
    masquerade: dict = field(default_factory=dict, hash=False)  # an application service's user_id and device_id
    device: str = ""  # empty for tokens that belong to no device

    def with_token(self, kind: str, token: str) -> "Session":
        return replace(self, kind=kind, token=token)


@dataclass(frozen=True)
class Question:
    """What is asked, apart from who asks."""

    title: str
    method: str = "GET"
    path: str = SYNC
    carrier: Carrier = Carrier.HEADER
    query: dict = field(default_factory=dict, hash=False)
    body: object = field(default=None, hash=False)
    headers: tuple = ()  # further ones, as (name, value)


@dataclass(frozen=True)
class Answer:
    session: Session
    question: Question
    agent: str
    status: int
    content_type: str
    body: object


def sync(carrier: Carrier, path: str = SYNC, **query) -> Question:
    """An initial sync, answered at once."""
    return Question(f"GET sync by {carrier.value}", "GET", path, carrier, query)


def sliding_sync(carrier: Carrier) -> Question:
    return Question(f"POST sliding sync by {carrier.value}", "POST", SLIDING_SYNC, carrier, body=SLIDING_SYNC_BODY)


def user_key(user: str) -> str:
    """The key of a known user (docs/variables.md): 16 hex digits of SHA-256."""
    return hashlib.sha256(user.encode()).hexdigest()[:16]


def ask(session: Session, question: Question, port: int, *, direct: bool = False) -> Answer:
    """One request on a connection of its own.

    `direct` is for requests that do not pass the proxy: they bring the headers that it would have added.
    """
    agent = f"{AGENT} {next(numbers):05})"
    headers = [("User-Agent", agent), ("Accept", "application/json"), *question.headers]
    if direct or session.behind_proxy:
        headers += [("X-Forwarded-For", session.address), ("X-Forwarded-Proto", "http")]
    arguments = [urlencode({"timeout": "0", **question.query, **session.masquerade})]
    if session.token and question.carrier is Carrier.HEADER:
        headers.append(("Authorization", f"Bearer {session.token}"))
    elif session.token:
        arguments.append(token_argument(session.token, question.carrier))
    content = b"" if question.body is None else json.dumps(question.body).encode()
    if content:
        headers.append(("Content-Type", "application/json"))
    source = None if direct or session.behind_proxy else session.address
    with Client(port, source=source) as client:
        try:
            got = client.ask(question.method, f"{question.path}?{'&'.join(arguments)}", headers, content or None)
        except (OSError, http.client.HTTPException) as error:
            return Answer(session, question, agent, 0, "", f"no answer: {error}")
    return Answer(session, question, agent, got.status, got.headers.get("content-type", ""), got.decoded())


def token_argument(token: str, carrier: Carrier) -> str:
    if carrier is Carrier.QUERY:
        return urlencode({"access_token": token})
    # Every byte of the token encoded, and one of the name.
    return "access%5Ftoken=" + "".join(f"%{byte:02x}" for byte in token.encode())


# What differs between two answers to the same question: positions in the stream, ages, and the time of the reply.
VOLATILE = {"next_batch", "prev_batch", "pos", "age"}


def comparable(value: object) -> object:
    """An answer's body without what changes from one moment to the next."""
    if isinstance(value, dict):
        return {name: comparable(part) for name, part in value.items() if name not in VOLATILE}
    if isinstance(value, list):
        return [comparable(part) for part in value]
    return value
