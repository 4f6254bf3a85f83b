"""The requests of a run: what each session asks through nginx, and what Synapse answers when it is asked directly."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import quote

from tests.bed.client import Client

from .client import Answer, Carrier, Question, Session, ask, sliding_sync, sync, user_key
from .nginx import Nginx
from .people import THREADS
from .synapse import Synapse


@dataclass
class Traffic:
    """Everything that was asked. `direct` holds Synapse's own answers to the questions in `proxied`, pair by pair."""

    synapse: Synapse
    nginx: Nginx
    proxied: list[Answer] = field(default_factory=list)
    direct: list[Answer] = field(default_factory=list)
    chosen: dict[str, str] = field(default_factory=dict)  # instance by user, as nginx's consistent hash has it

    def send(self, sessions: list[Session], questions_for) -> None:
        """Each user's sessions ask in turn, different users at the same time; each question directly, too."""
        by_user: dict[str, list[Session]] = {}
        for session in sessions:
            by_user.setdefault(session.user, []).append(session)
        with ThreadPoolExecutor(THREADS) as pool:
            for pairs in pool.map(lambda mine: self.of_one_user(mine, questions_for), by_user.values()):
                for proxied, direct in pairs:
                    self.proxied.append(proxied)
                    self.direct.append(direct)

    def of_one_user(self, sessions: list[Session], questions_for) -> list[tuple[Answer, Answer]]:
        pairs = []
        for session in sessions:
            worker = self.synapse.worker_ports[self.choose(session.user)]
            asked: dict[tuple, Answer] = {}
            for question in questions_for(session):
                proxied = ask(session, question, self.nginx.port)
                same = (question.path, question.title if question.headers else "")
                if same not in asked:  # Synapse takes a token from any place: one direct answer for all carriers
                    asked[same] = ask(session, question, worker, direct=True)
                pairs.append((proxied, asked[same]))
        return pairs

    def choose(self, user: str) -> str:
        """The worker of `user`, by asking nginx itself where its consistent hash puts the user's key."""
        if user not in self.chosen:
            self.chosen[user] = worker_by_key(self.nginx, user_key(user))
        return self.chosen[user]

    def agents(self) -> set[str]:
        return {answer.agent for answer in self.proxied}


def worker_by_key(nginx: Nginx, key: str) -> str:
    with Client(nginx.port) as client:
        port = int(client.ask("GET", f"/worker-by-key?key={quote(key)}").worker.rsplit(":", 1)[1])
    return next(name for name, listening in nginx.synapse.worker_ports.items() if listening == port)


def everything(session: Session) -> list[Question]:
    """By header, by query and by percent-encoded query, the old sync and the new."""
    questions = [sync(carrier) for carrier in Carrier]
    questions.append(sync(Carrier.HEADER, path="/_matrix/client/r0/sync"))
    if session.device:  # Synapse answers sliding sync without a device with 500
        questions += [sliding_sync(carrier) for carrier in Carrier]
    if not session.masquerade and session.kind != "application service":
        # Only application services may speak for others: for everybody else Synapse ignores these words.
        questions.append(Question("GET sync with somebody else's user_id",
                                  query={"user_id": "@somebody_else:example.org", "device_id": "ELSEWHERE"}))
    return questions


def just_one(session: Session) -> list[Question]:
    return [sync(Carrier.HEADER)]


STRANGERS = Session("", "unknown", "syt_bWFsbG9yeQ_cXdlcnR6dWlvcGFzZGZn_3kZ1aB", "127.0.60.1")
NOBODY = Session("", "none", "", "127.0.60.2")


def refused(session: Session) -> list[Question]:
    """What Synapse refuses: the words are its own, wherever the request lands."""
    if session.token:
        return [sync(carrier) for carrier in Carrier]
    good = "Bearer syt_bWFsbG9yeQ_cXdlcnR6dWlvcGFzZGZn_7pQ9xY"
    return [
        sync(Carrier.HEADER),
        Question("another scheme", path="/_matrix/client/r0/sync", headers=(("Authorization", "Basic YWxpY2U6eA=="),)),
        Question("header and query together", query={"access_token": "x"}, headers=(("Authorization", good),)),
    ]
