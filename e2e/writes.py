"""Writes count: what is written through nginx is read through nginx, by somebody else where it is for others."""

from collections.abc import Callable
from urllib.parse import quote

from .report import Group, Report
from .world import Failed, Login, World

SECONDS = 30


class Listener:
    """Somebody who syncs, and keeps what came since the last time."""

    def __init__(self, w: World, login: Login):
        self.w, self.login = w, login
        self.since = w.call("GET", "/_matrix/client/v3/sync?timeout=0", login=login)["next_batch"]

    def hears(self, what: Callable[[dict], object]) -> bool:
        """Whether a sync brings it, sooner or later."""
        def once() -> bool:
            path = f"/_matrix/client/v3/sync?timeout=500&since={quote(self.since)}"
            news = self.w.call("GET", path, login=self.login)
            self.since = news["next_batch"]
            return bool(what(news))

        self.w.until(once, SECONDS)
        return True

    def hears_in_room(self, room: str, part: str, kind: str, what: Callable[[dict], object] = lambda _: True) -> bool:
        """Whether a sync brings such an event in a part of a room."""
        def found(news: dict) -> bool:
            events = news.get("rooms", {}).get("join", {}).get(room, {}).get(part, {}).get("events", [])
            return any(event["type"] == kind and what(event["content"]) for event in events)

        return self.hears(found)


def typing(w: World, bob: Listener) -> bool:
    """typing: the other member sees who types"""
    w.call("PUT", f"/_matrix/client/v3/rooms/{quote(w.room)}/typing/{quote(w.admin.user)}",
           {"typing": True, "timeout": 20_000})
    return bob.hears_in_room(w.room, "ephemeral", "m.typing", lambda content: w.admin.user in content["user_ids"])


def to_device(w: World, bob: Listener) -> bool:
    """to-device: the message reaches the device"""
    w.call("PUT", f"/_matrix/client/v3/sendToDevice/org.example.written/{w.name('txn')}",
           {"messages": {bob.login.user: {bob.login.device: {"tea": "black"}}}})
    return bob.hears(lambda news: any(event["type"] == "org.example.written" and event["content"] == {"tea": "black"}
                                      for event in news.get("to_device", {}).get("events", [])))


def receipts(w: World, bob: Listener) -> bool:
    """receipts: the other member sees what was read"""
    event = w.new_event(w.room, w.bob)
    w.call("POST", f"/_matrix/client/v3/rooms/{quote(w.room)}/receipt/m.read/{quote(event)}", {})
    return bob.hears_in_room(w.room, "ephemeral", "m.receipt",
                             lambda content: w.admin.user in content.get(event, {}).get("m.read", {}))


def presence(w: World, bob: Listener) -> bool:
    """presence: others see the status"""
    path, message = f"/_matrix/client/v3/presence/{quote(w.admin.user)}/status", w.name("status")
    w.call("PUT", path, {"presence": "online", "status_msg": message})
    return bob.hears(lambda news: any(
        event["sender"] == w.admin.user and event["content"].get("status_msg") == message
        for event in news.get("presence", {}).get("events", [])))


def events(w: World, bob: Listener) -> bool:
    """events: the other member sees the message"""
    body = w.name("message")
    w.new_event(body=body)
    return bob.hears_in_room(w.room, "timeline", "m.room.message", lambda content: content.get("body") == body)


def push_rules(w: World, _bob: Listener) -> bool:
    """push rules: a new rule is among them, in the answer and in a sync"""
    listener = Listener(w, w.admin)
    rule = w.new_rule().rpartition("/")[2]

    def has(rules: dict) -> bool:
        return any(one["rule_id"] == rule for one in rules["global"].get("override", []))

    w.until(lambda: has(w.call("GET", "/_matrix/client/v3/pushrules/")), SECONDS)
    return listener.hears(lambda news: any(event["type"] == "m.push_rules" and has(event["content"])
                                           for event in news.get("account_data", {}).get("events", [])))


def account_data(w: World, _bob: Listener) -> bool:
    """account data: it is there, in the answer and in a sync"""
    listener = Listener(w, w.admin)
    kind = w.account_data(of_room=False)
    path = f"/_matrix/client/v3/user/{quote(w.admin.user)}/account_data/{kind}"
    w.until(lambda: w.ask("GET", path, token=w.admin.token).status == 200, SECONDS)
    return w.call("GET", path) == {"tea": "green"} and listener.hears(
        lambda news: any(event["type"] == kind for event in news.get("account_data", {}).get("events", [])))


def keys(w: World, bob: Listener) -> bool:
    """keys: an uploaded device is in the query, and others hear that the list has changed"""
    device = w.new_login(w.admin.user)
    upload = {"device_keys": {
        "user_id": device.user, "device_id": device.device, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": {f"ed25519:{device.device}": "ed", f"curve25519:{device.device}": "curve"},
        "signatures": {device.user: {f"ed25519:{device.device}": "signature"}}},
        "one_time_keys": {"curve25519:AAAAAQ": "one time"}}
    counts = w.call("POST", "/_matrix/client/v3/keys/upload", upload, device)["one_time_key_counts"]
    changed = bob.hears(lambda news: device.user in news.get("device_lists", {}).get("changed", []))
    found = w.call("POST", "/_matrix/client/v3/keys/query", {"device_keys": {device.user: []}}, bob.login)
    key = found["device_keys"][device.user][device.device]["keys"][f"ed25519:{device.device}"]
    claimed = w.call("POST", "/_matrix/client/v3/keys/claim",
                     {"one_time_keys": {device.user: {device.device: "curve25519"}}}, bob.login)
    once = claimed["one_time_keys"][device.user][device.device]
    return changed and counts["curve25519"] == 1 and key == "ed" and once == {"curve25519:AAAAAQ": "one time"}


def thread_subscriptions(w: World, _bob: Listener) -> bool:
    """thread subscriptions: one that was made is there, one that was taken back is not"""
    root = w.new_event()
    path = f"/_matrix/client/unstable/io.element.msc4306/rooms/{quote(w.room)}/thread/{quote(root)}/subscription"
    w.call("PUT", path, {})
    w.until(lambda: w.ask("GET", path, token=w.admin.token).status == 200, SECONDS)
    w.call("DELETE", path)
    w.until(lambda: w.ask("GET", path, token=w.admin.token).status == 404, SECONDS)
    return True


def media(w: World, _bob: Listener) -> bool:
    """media: what was uploaded comes back byte by byte; not while it is in quarantine"""
    name = w.new_media()
    picture, path = w.picture, f"/_matrix/client/v1/media/download/example.org/{name}"

    def status() -> int:
        return w.ask("GET", path, token=w.admin.token).status

    same = w.ask("GET", path, token=w.admin.token).text == picture
    w.call("POST", f"/_synapse/admin/v1/media/quarantine/example.org/{name}", {})
    w.until(lambda: status() == 404, SECONDS)
    changes = w.call("GET", "/_synapse/admin/v1/media/quarantine_changes?limit=1000&from=0")
    w.call("POST", f"/_synapse/admin/v1/media/unquarantine/example.org/{name}", {})
    w.until(lambda: status() == 200, SECONDS)
    return same and name in str(changes)


def quarantine_of_a_room(w: World, _bob: Listener) -> bool:
    """quarantine: all media of a room, and all of a user"""
    room, uploader = w.new_room(), w.new_login()
    w.join(room, uploader)
    of_room = w.new_media()
    w.new_event(room, msgtype="m.image", url=f"mxc://example.org/{of_room}")
    of_user = w.new_media(login=uploader)
    first = w.call("POST", f"/_synapse/admin/v1/room/{quote(room)}/media/quarantine", {})
    second = w.call("POST", f"/_synapse/admin/v1/user/{quote(uploader.user)}/media/quarantine", {})
    for name in (of_room, of_user):
        path = f"/_matrix/client/v1/media/download/example.org/{name}"
        w.until(lambda path=path: w.ask("GET", path, token=w.admin.token).status == 404, SECONDS)
    return first["num_quarantined"] == second["num_quarantined"] == 1


WRITES = (typing, to_device, receipts, presence, events, push_rules, account_data, keys, thread_subscriptions, media,
          quarantine_of_a_room)


def check(report: Report, w: World, layout: str) -> None:
    """A line for each of them."""
    for write in WRITES:
        try:
            problem = None if write(w, Listener(w, w.bob)) else "it does not come back as it was written"
        except (Failed, KeyError) as error:
            problem = repr(error)
        report.about(Group.WRITES, f"{layout}: {write.__doc__}", problem)
