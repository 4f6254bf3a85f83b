"""Every endpoint and method that the companion's table has, asked of a deployment.

`RECIPES` say what makes a question one that Synapse carries out, and not one that it refuses at first sight: a body, a
query, a thing that was made for it. What has no recipe gets an empty body.
"""

import re
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from urllib.parse import quote

from tests.bed.processes import ROOT

from .synapse import SERVER_NAME
from .world import BACKUP, BRIDGE, PASSWORD, SESSION, Failed, Login, World

TABLE = ROOT / "companion/tests/nginx/endpoints.tsv"
TEXT = {"msgtype": "m.text", "body": "tea"}


@dataclass(frozen=True)
class Question:
    """A method and a pattern of Synapse's, with one choice of its alternatives."""

    method: str
    pattern: str
    # The path, with `{name}` where the pattern has a named group.
    path: str

    @property
    def late(self) -> bool:
        """Whether it takes something away: those come last."""
        return self.method == "DELETE" or re.search(DESTRUCTIVE, self.path) is not None

    def __str__(self):
        return f"{self.method} {self.path}"


VERSION = r"^(/_matrix/(?:client|media)/)(?:api/v1|r0|v1|v3|unstable)/"
DESTRUCTIVE = r"deactivate|logout|delete|purge|quarantine|forget|suspend|shadow_ban|redact|password|upgrade|/block$"


def questions() -> list[Question]:
    """All, in the order of the table, the destructive ones last."""
    rows = [line.split("\t") for line in TABLE.read_text().splitlines() if line and not line.startswith("#")]
    found = [Question(row[0], row[-1], path) for row in rows for path in versions(row[-1])]
    return sorted(found, key=lambda question: question.late)


def versions(pattern: str) -> list[str]:
    """The paths of a pattern in two versions of the API, v3 or its like and another, which differs from row to row.

    `scripts/companion-test endpoints` asks for all of them, where asking costs nothing.
    """
    alike: dict[str, list[str]] = {}
    for path in paths(pattern):
        alike.setdefault(re.sub(VERSION, r"\1VERSION/", path), []).append(path)
    chosen = []
    for same in alike.values():
        *others, newest = sorted(same)
        chosen += [newest, *others[zlib.crc32(pattern.encode()) % max(1, len(others)):][:1]]
    return chosen


def paths(pattern: str) -> list[str]:
    """A path for each choice among the alternatives of a pattern, optional parts with and without."""
    parser = re._parser
    parsed = parser.parse(pattern)
    names = {index: name for name, index in parsed.state.groupdict.items()}

    def parts(tokens) -> list[str]:
        found = [""]
        for kind, value in tokens:
            found = ["".join(pair) for pair in product(found, options(str(kind), value))]
        return found

    def options(kind: str, value) -> list[str]:
        match kind:
            case "LITERAL":
                return [chr(value)]
            case "ANY":
                return ["."]  # a dot of an identifier that Synapse did not escape
            case "AT" | "ASSERT_NOT":
                return [""]
            case "BRANCH":
                return [option for branch in value[1] for option in parts(branch)]
            case "SUBPATTERN":
                literal = all(str(inner) in ("LITERAL", "BRANCH", "ANY") for inner, _ in value[3])
                return parts(value[3]) if literal or value[0] not in names else [f"{{{names[value[0]]}}}"]
            case "MAX_REPEAT" | "MIN_REPEAT":
                low, high, inner = value
                if (low, high) == (0, 1):
                    return ["", *parts(inner)] if str(inner[0][0]) == "SUBPATTERN" else [""]
        raise AssertionError(f"{pattern}: no sample for {kind}")

    return sorted(set(parts(parsed)))


def sample(w: World, question: Question) -> dict:
    """What stands for the named groups of a path."""
    administration = question.path.startswith("/_synapse/")
    return {
        "room_id": w.room, "room_identifier": w.room, "room_alias": f"#nowhere:{SERVER_NAME}", "event_id": w.event,
        "parent_id": w.event, "thread_root_id": w.event, "relation_type": "m.thread", "event_type": "m.room.message",
        "user_id": w.bob.user if administration else w.admin.user, "target_user_id": w.bob.user,
        "device_id": w.bob.device if administration else w.admin.device, "account_data_type": "org.example.e2e",
        "tag": "m.favourite", "message_type": "org.example.e2e", "receipt_type": "m.read", "state_key": "tea",
        "server_name": SERVER_NAME, "server": SERVER_NAME, "key_id": "ed25519:a_e2e", "media_id": w.media,
        "file_name": "tea.png", "stagetype": "m.login.recaptcha", "field_name": "org.example.field",
        "network_id": "irc", "appservice_id": "irc-bridge", "protocol": "irc", "query_type": "profile",
        "medium": "email", "address": "tea@example.org", "provider": "oidc", "external_id": "tea",
        "destination": "elsewhere.example.com", "session_id": "session1", "path": "pushrules/", "filter_id": "0",
        "delay_id": "none", "rendezvous_id": "none", "version": "1", "purge_id": "none", "redact_id": "none",
        "delete_id": "none", "report_id": "1000000", "token": "none", "txn_id": "txn", "transaction_id": "txn",
    }


# --- recipes: (methods, a part of the path, what to ask). The first that fits counts. --------------------------------

def keys(w: World, q: Question) -> dict:
    """Backed-up keys: of one session, of a room, of all."""
    body = SESSION
    if "{session_id}" not in q.path:
        body = {"sessions": {"session1": body}}
    if "{room_id}" not in q.path:
        body = {"rooms": {w.room: body}}
        body = body if "{session_id}" not in q.path else {"rooms": {w.room: {"sessions": {"session1": SESSION}}}}
    return {"query": f"version={w.new_backed_up('session1')}", "body": body if q.method == "PUT" else None}


def membership(w: World, q: Question) -> dict:
    """Each on a room of its own."""
    action = re.search(r"/(join|invite|leave|ban|unban|kick)(/|$)", q.path)[1]
    room = w.new_room(w.bob) if action == "join" else w.new_room()
    if action in ("ban", "unban", "kick"):
        w.join(room, w.bob)
    if action == "unban":
        w.member(room, "ban", user_id=w.bob.user)
    return {"room_id": room, "body": {} if action in ("join", "leave") else {"user_id": w.bob.user}}


def with_login(make: Callable[[World, Login, Question], dict]) -> Callable:
    """Asked by a user who was made for it."""
    def recipe(w: World, q: Question) -> dict:
        login = w.new_login()
        return {"token": login.token, **make(w, login, q)}

    return recipe


def of_new_user(**body) -> Callable:
    """About a user who was made for it."""
    def recipe(w: World, _q: Question) -> dict:
        user = w.new_user()
        return {"user_id": user, "target_user_id": user, "body": body}

    return recipe


def of_new_room(**body) -> Callable:
    """About a room that was made for it."""
    def recipe(w: World, _q: Question) -> dict:
        room = w.new_room()
        return {"room_id": room, "room_identifier": room, "event_id": w.new_event(room), "body": body}

    return recipe


def of_new_media(**body) -> Callable:
    """About media that was made for it."""
    return lambda w, _q: {"media_id": w.new_media(), "body": body}


def body(**content) -> Callable:
    """With that body."""
    return lambda _w, _q: {"body": content}


def query(text: str) -> Callable:
    """With that query."""
    return lambda _w, _q: {"query": text}


def left_room(w: World, _q: Question) -> dict:
    room = w.new_room(w.bob)
    w.join(room, w.admin)
    w.member(room, "leave")
    return {"room_id": room, "body": {}}


def old_device(w: World, _q: Question) -> dict:
    device = w.new_login(w.bob.user).device
    return {"device_id": device, "body": {"devices": [device]} if _q.method == "POST" else None}


def dehydrated(w: World, login: Login, _q: Question) -> dict:
    keys = {"algorithms": ["m.olm.v1.curve25519-aes-sha2"], "device_id": "DRY", "user_id": login.user,
            "keys": {"ed25519:DRY": "k"}, "signatures": {login.user: {"ed25519:DRY": "s"}}}
    data = {"device_id": "DRY", "initial_device_display_name": "Dry", "device_keys": keys,
            "device_data": {"algorithm": "m.dehydration.v1.olm"}}
    w.call("PUT", "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device", data, login)
    return {"device_id": "DRY", "body": data}


def profile(w: World, login: Login, q: Question) -> dict:
    """Of a new user: Synapse fails if the next change comes while it still tells the rooms of the last."""
    name = q.path.rpartition("/")[2].replace("{field_name}", "org.example.field")
    value = f"mxc://{SERVER_NAME}/tea" if name == "avatar_url" else "Tea"
    if q.method != "PUT":
        w.call("PUT", f"/_matrix/client/v3/profile/{quote(login.user)}/{name}", {name: value}, login)
    return {"user_id": login.user, "body": {name: value} if q.method == "PUT" else None}


# A public key of nobody in particular.
PUBLIC = "Noq6nbQBzQmFKGRXzHXXmDaBNhzJHSn1lLJNSdnTlVE"


def master_key(_w: World, login: Login, _q: Question) -> dict:
    key = {"user_id": login.user, "usage": ["master"], "keys": {f"ed25519:{PUBLIC}": PUBLIC}}
    return {"body": {"master_key": key, "auth": World.proof(login)}}


def deleted_room(w: World, _q: Question) -> dict:
    room = w.new_room()
    delete = w.call("DELETE", f"/_synapse/admin/v2/rooms/{quote(room)}", {})["delete_id"]
    w.until(lambda: w.call("GET", f"/_synapse/admin/v2/rooms/delete_status/{delete}")["status"] != "scheduled")
    return {"room_id": room, "delete_id": delete}


def old_room(w: World, q: Question) -> dict:
    """A room with a history."""
    room = w.new_room()
    events = [w.new_event(room) for _ in range(3)]
    return {"room_id": room, "event_id": events[1], "body": {} if "{event_id}" in q.path else {"purge_up_to_ts": now()}}


def purged(w: World, _q: Question) -> dict:
    old = old_room(w, _q)
    got = w.call("POST", f"/_synapse/admin/v1/purge_history/{quote(old['room_id'])}/{quote(old['event_id'])}", {})
    return {"purge_id": got["purge_id"]}


def redacted(w: World, _q: Question) -> dict:
    got = w.call("POST", f"/_synapse/admin/v1/user/{quote(w.new_user())}/redact", {"rooms": []})
    return {"redact_id": got["redact_id"]}


def subscription(w: World, q: Question) -> dict:
    root = w.new_event()
    path = (f"/_matrix/client/unstable/io.element.msc4306/rooms/{quote(w.room)}/thread/{quote(root)}/subscription")
    if q.method != "PUT":
        w.call("PUT", path, {})
    return {"thread_root_id": root, "body": {} if q.method == "PUT" else None}


def state_of(w: World, q: Question) -> dict:
    """State that is there when it is read."""
    tail = "/tea" if "{state_key}" in q.path else ""
    if q.method == "GET":
        w.call("PUT", f"/_matrix/client/v3/rooms/{quote(w.room)}/state/org.example.state{tail}", {"tea": "green"})
    return {"event_type": "org.example.state", "body": {"tea": w.name()} if q.method == "PUT" else None}


def now() -> int:
    return int(time.time() * 1000)


CLAIM = {"one_time_keys": {f"@bob:{SERVER_NAME}": {"NONE": "signed_curve25519"}}}
UPLOAD = {"one_time_keys": {"curve25519:AAAAAQ": "zKbLg+NrIjpnagy+pIY6uPL4ZwEG2v+8F9lmgsnlZzs"}}
EMAIL = {"client_secret": "abcdef", "email": "tea@example.org", "send_attempt": 1}
PHONE = {"client_secret": "abcdef", "country": "DE", "phone_number": "015112345678", "send_attempt": 1}
TOKEN = {"client_secret": "abcdef", "sid": "1", "token": "1"}
SLIDING = {"lists": {"all": {"ranges": [[0, 9]], "timeline_limit": 1, "required_state": []}}}

RECIPES: list[tuple[str, str, Callable]] = [
    # --- the client API ---
    ("PUT", "/account_data/", body(tea="green")),
    ("GET", "/account_data/", lambda w, q: {"account_data_type": w.account_data("{room_id}" in q.path)}),
    ("DELETE", "/account_data/", lambda w, q: {"account_data_type": w.account_data("{room_id}" in q.path)}),
    ("PUT", "/tags/", body(order=0.5)),
    ("POST|PUT", "/createRoom", body(preset="private_chat")),
    ("GET|DELETE", "/directory/room/", lambda w, _q: {"room_alias": w.new_alias()}),
    ("PUT", "/directory/room/", lambda w, _q: {"room_alias": f"#{w.name('alias')}:{SERVER_NAME}",
                                               "body": {"room_id": w.room}}),
    ("PUT", "/directory/list/room/", body(visibility="public")),
    ("PUT", "/directory/list/appservice/", lambda w, _q: {"token": BRIDGE, "body": {"visibility": "public"}}),
    ("DELETE", "/directory/list/appservice/", lambda w, _q: {"token": BRIDGE}),
    ("POST", "/login$", lambda w, _q: {"body": {
        "type": "m.login.password", "identifier": {"type": "m.id.user", "user": "bob"}, "password": PASSWORD}}),
    ("PUT|GET|DELETE", "/profile/.*/(displayname|avatar_url|{field_name})$", with_login(profile)),
    ("POST", "/user_directory/search$", body(search_term="bob")),
    ("POST", "/search$", body(search_categories={"room_events": {"search_term": "tea"}})),
    ("POST", "/account/deactivate$", with_login(lambda w, login, _q: {"body": {"auth": w.proof(login)}})),
    ("GET", "/keys/changes$", lambda w, _q: {"query": f"from={w.since}&to={w.since}"}),
    ("POST", "/keys/claim$", body(**CLAIM)),
    ("POST", "/keys/query$", lambda w, _q: {"body": {"device_keys": {w.bob.user: []}}}),
    ("POST", "/register$", lambda w, q: {"body": w.registration()} if q.path.startswith("/_synapse") else {
        "token": "", "body": {"username": w.name("user"), "password": PASSWORD, "auth": {"type": "m.login.dummy"}}}),
    ("GET", "/register/available$|/username_available$", lambda w, _q: {"query": f"username={w.name('user')}"}),
    ("GET", "/validity$", lambda w, _q: {"query": f"token={w.new_registration_token()}"}),
    ("POST", "/room_keys/version$", body(**BACKUP)),
    ("GET|DELETE", "/room_keys/version/", lambda w, _q: {"version": w.new_backup()}),
    ("GET", "/room_keys/version$", lambda w, _q: {"version": w.new_backup()}),
    ("PUT", "/room_keys/version/", lambda w, _q: {"version": (v := w.new_backup()), "body": {**BACKUP, "version": v}}),
    (".*", "/room_keys/keys", keys),
    ("POST", "/filter$", body(room={"timeline": {"limit": 1}})),
    ("GET", "/filter/", lambda w, _q: {"filter_id": w.new_filter()}),
    (".*", "/delayed_events/", lambda w, q: {"delay_id": w.new_delayed_event(),
                                             "body": None if q.method == "GET" else {"action": "restart"}}),
    ("POST", "/_matrix/.*/delete_devices$", with_login(
        lambda w, login, _q: {"body": {"devices": [login.device], "auth": w.proof(login)}})),
    ("DELETE", "/_matrix/.*/devices/", with_login(
        lambda w, login, _q: {"device_id": login.device, "body": {"auth": w.proof(login)}})),
    ("PUT", "/devices/", body(display_name="Console")),
    ("POST", "/keys/upload$", body(**UPLOAD)),
    ("POST", "/keys/device_signing/upload$", with_login(master_key)),
    ("GET", "/events$|/initialSync$|/sync$", query("timeout=0&limit=1")),
    ("POST", "simplified_msc3575/sync$", lambda w, _q: {"query": "timeout=0", "body": SLIDING}),
    ("POST", "/logout", with_login(lambda w, login, _q: {"body": {}})),
    ("POST", "/pushers/set$", body(kind=None, app_id="org.example", pushkey="tea")),
    ("GET", "/pushers/remove$", lambda w, _q: {
        "query": f"access_token={w.admin.token}&app_id=org.example&pushkey=tea", "token": ""}),
    ("POST|PUT", "/forget", left_room),
    ("POST", "/email/requestToken$", body(**EMAIL)),
    ("POST", "/msisdn/requestToken$", body(**PHONE)),
    ("POST", "/account/3pid", body(client_secret="abcdef", sid="1", medium="email", address="tea@example.org")),
    ("POST", "/account/password$", with_login(
        lambda w, login, _q: {"body": {"new_password": "another password", "auth": w.proof(login)}})),
    (".*", "/fallback/web$", query("session=none")),
    (".*", "/submit_token$", lambda w, _q: {"query": "token=1&client_secret=abcdef&sid=1", "body": TOKEN}),
    ("POST", "/refresh$", lambda w, _q: {"body": {"refresh_token": w.new_refresh_token()}}),
    ("POST", "/report", body(reason="spam", score=-100)),
    ("POST", "/upgrade$", of_new_room(new_version="10")),
    ("GET", "/mutual_rooms$", lambda w, _q: {"query": f"user_id={quote(w.bob.user)}"}),
    ("GET", "/account_validity/renew$", query("token=none")),
    ("POST", "/appservice/.*/ping$", lambda w, _q: {"token": BRIDGE, "body": {"transaction_id": "tea"}}),
    ("POST", "/account_status$", lambda w, _q: {"query": f"user_id={quote(w.bob.user)}", "body": {
        "user_ids": [w.bob.user]}}),
    ("GET|PUT|DELETE", "/dehydrated_device$", with_login(dehydrated)),
    ("GET|POST", "/dehydrated_device/", with_login(dehydrated)),
    ("PUT", "/presence/", body(presence="online", status_msg="tea")),
    ("PUT", "{path}$", lambda w, _q: {"path": f"pushrules/global/override/{w.name('rule')}", "body": {
        "actions": ["notify"], "conditions": []}}),
    ("DELETE", "{path}$", lambda w, _q: {"path": w.new_rule()}),
    ("POST", "/read_markers$", lambda w, _q: {"body": {"m.fully_read": w.event, "m.read": w.event}}),
    ("POST|PUT", "/_matrix/client/.*/join/{room_identifier}", lambda w, _q: {"room_identifier": w.new_room(w.bob)}),
    ("POST", "/knock/", lambda w, _q: {"room_identifier": w.new_room(w.bob, preset="private_chat", initial_state=[
        {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}])}),
    ("POST|PUT", "/_matrix/client/.*/rooms/{room_id}/(join|invite|leave|ban|unban|kick)(/|$)", membership),
    ("POST|PUT", "/redact/{event_id}", lambda w, _q: {"event_id": w.new_event(), "body": {"reason": "spam"}}),
    ("POST|PUT", "/send/", lambda w, q: {"body": TEXT} if "/client/" in q.path else {"body": {
        "origin": SERVER_NAME, "origin_server_ts": now(), "pdus": [], "edus": []}}),
    ("GET|PUT", "/_matrix/client/.*/state/", state_of),
    ("GET", "/cumulative_joined_room_count$|/sent_invite_count$", query("from_ts=0")),
    ("GET", "/thread_subscriptions$", query("dir=b")),
    ("GET", "/timestamp_to_event", query("ts=1&dir=f")),
    ("PUT|GET|DELETE", "/subscription$", subscription),
    ("PUT", "/sendToDevice/", lambda w, _q: {"body": {"messages": {w.bob.user: {w.bob.device: {"tea": "green"}}}}}),
    ("PUT", "/typing/", body(typing=True, timeout=30_000)),
    # --- media ---
    ("POST", "/media/.*/upload$", lambda w, _q: {"query": "filename=tea.png", "raw": w.new_picture()}),
    ("PUT", "/media/v3/upload/", lambda w, _q: {"media_id": w.new_slot(), "raw": w.new_picture()}),
    ("GET", "/thumbnail/", query("width=32&height=32&method=scale")),
    ("GET", "/preview_url$", query("url=https%3A%2F%2Fexample.com%2F")),
    # --- administration ---
    ("POST", "/media/{server_name}/delete$|/media/delete$|/purge_media_cache$", query("before_ts=1600000000000")),
    ("POST|DELETE", "/_synapse/admin/v1/media/", of_new_media()),
    ("POST", "/media/quarantine$|/quarantine_media/", lambda w, _q: {"user_id": w.new_user(), "room_id": w.new_room(),
                                                                     "body": {}}),
    ("DELETE", "/users/{user_id}/media$", of_new_user()),
    ("GET", "/quarantine_changes$", query("limit=1")),
    ("POST", "/account_validity/validity$", lambda w, _q: {"body": {"user_id": w.bob.user}}),
    ("POST", "/background_updates/enabled$", body(enabled=True)),
    ("POST", "/background_updates/start_job$", body(job_name="none")),
    ("POST", "/_synapse/admin/v1/deactivate/", of_new_user()),
    ("GET|DELETE", "/event_reports/", lambda w, _q: {"report_id": w.new_report()}),
    ("GET|DELETE", "/user_reports/", lambda w, _q: {"report_id": w.new_user_report()}),
    ("PUT", "/experimental_features/", body(features={"msc3881": True})),
    ("POST", "/_synapse/admin/v1/join/", lambda w, _q: {"room_identifier": w.new_room(), "body": {
        "user_id": w.bob.user}}),
    ("POST", "/purge_history/", old_room),
    ("GET", "/purge_history_status/", purged),
    ("POST", "/registration_tokens/new$", lambda w, _q: {"body": {"token": w.name("token")}}),
    ("GET|DELETE", "/registration_tokens/", lambda w, _q: {"token_in_path": w.new_registration_token()}),
    ("PUT", "/registration_tokens/", lambda w, _q: {"token_in_path": w.new_registration_token(), "body": {
        "uses_allowed": 2}}),
    ("POST", "/reset_password/", of_new_user(new_password="another password", logout_devices=False)),
    ("PUT", "/block$", of_new_room(block=True)),
    ("DELETE", "/_synapse/admin/v./rooms/", of_new_room()),
    ("POST", "/make_room_admin$", lambda w, _q: {"room_identifier": w.new_room(), "body": {"user_id": w.bob.user}}),
    ("GET", "/delete_status", deleted_room),
    ("GET", "/search_users/", query("term=b")),
    ("POST|PUT", "/send_server_notice", lambda w, _q: {"body": {"user_id": w.bob.user, "content": TEXT}}),
    ("PUT", "/suspend/", of_new_user(suspend=True)),
    ("POST", "/redact$", of_new_user(rooms=[])),
    ("GET", "/redact_status/", redacted),
    ("PUT", "/users/{user_id}/admin$", of_new_user(admin=True)),
    ("POST", "/override_ratelimit$", of_new_user(messages_per_second=0)),
    ("POST|DELETE", "/shadow_ban$", of_new_user()),
    ("PUT", "/_synapse/admin/v2/users/{user_id}$", lambda w, _q: {
        "user_id": f"@{w.name('user')}:{SERVER_NAME}", "body": {"password": PASSWORD}}),
    ("POST|DELETE", "/_synapse/admin/v2/users/{user_id}/(delete_devices$|devices/)", old_device),
    ("POST", "/_synapse/admin/v2/users/{user_id}/devices$", lambda w, _q: {"body": {"device_id": w.name("DEVICE")}}),
    # --- other servers ---
    ("GET", "/openid/userinfo$", lambda w, _q: {"query": f"access_token={w.openid()}"}),
    ("GET", "/backfill/", lambda w, _q: {"query": f"limit=1&v={quote(w.event)}"}),
    ("POST", "/get_missing_events/", lambda w, _q: {"body": {
        "earliest_events": [], "latest_events": [w.event], "limit": 1}}),
    ("GET", "/make_(join|knock|leave)/", lambda w, _q: {"user_id": w.bob.user, "query": "ver=12&ver=11&ver=10"}),
    ("GET", "/query/{query_type}$", lambda w, _q: {"query": f"user_id={quote(w.bob.user)}"}),
    ("GET", "/federation/v1/state(_ids)?/", lambda w, _q: {"query": f"event_id={quote(w.event)}"}),
    ("POST", "/user/keys/claim$", body(one_time_keys={})),
    ("POST", "/user/keys/query$", lambda w, _q: {"body": {"device_keys": {w.bob.user: []}}}),
    ("POST", "/_matrix/key/v2/query$", body(server_keys={SERVER_NAME: {}})),
]


@dataclass(frozen=True)
class Outcome:
    """How Synapse answered."""

    status: int
    errcode: str
    text: str

    @property
    def key(self) -> tuple[int, str]:
        return self.status, self.errcode

    def __str__(self):
        return f"{self.status} {self.errcode}".strip()

    @property
    def astray(self) -> bool:
        """Whether it looks like the answer of a process that does not serve this."""
        return self.status == 0 or self.status >= 500 or self.errcode == "M_UNRECOGNIZED"


def ask(w: World, question: Question) -> Callable[[], Outcome]:
    """Makes what the question needs; gives what asks it, once for each call."""
    recipe = next((make for methods, part, make in RECIPES
                   if re.fullmatch(methods, question.method) and re.search(part, question.path)), None)
    plan = recipe(w, question) if recipe else {}
    values = {**sample(w, question), **plan}
    if "token_in_path" in plan:
        values["token"] = plan["token_in_path"]
    for name in ("txn_id", "transaction_id"):
        values[name] = w.name("txn")
    target = re.sub(r"\{(\w+)\}", lambda group: values[group[1]] if group[1] == "path" else
                    quote(values[group[1]], safe=""), question.path)
    if plan.get("query"):
        target += "?" + plan["query"]
    content = plan.get("body")
    if content is None and question.method in ("POST", "PUT") and "raw" not in plan:
        content = {}
    token = plan.get("token", w.admin.token)

    def once() -> Outcome:
        answer = w.ask(question.method, target, content, token, plan.get("raw"))
        said = answer.decoded()
        errcode = str(said.get("errcode", "")) if isinstance(said, dict) else ""
        return Outcome(answer.status, errcode, answer.text[:200].decode(errors="replace"))

    return once


def converse(w: World, expected: dict[Question, Outcome] | None = None) -> Iterator[tuple[Question, Outcome]]:
    """Asks everything.

    Where one process succeeded and this deployment refuses, it is asked again for a moment: a worker hears of what
    another has written a moment later.
    """
    patience = 60.0  # for the whole conversation: a fault that stays is not worth a wait each time
    for question in questions():
        try:
            once = ask(w, question)
        except (Failed, KeyError) as error:
            yield question, Outcome(0, "", f"what it is asked about could not be made: {error!r}")
            continue
        outcome = once()
        begin = time.monotonic()
        while (expected and outcome.key != expected[question].key and not outcome.astray and 400 <= outcome.status
               and time.monotonic() < begin + min(10.0, patience)):
            time.sleep(0.1)
            outcome = once()
        patience -= time.monotonic() - begin
        yield question, outcome
