"""Tokens that look real, whose they are, and the hash that nginx must give them.

A token carries its user's name, so that the stand-in homeserver needs no list, and a test can invent any number of users:

    mat_NAME_SECRET             as the Matrix Authentication Service makes them, but for the name
    syt_BASE64-OF-NAME_20_6     Synapse's own

Some names are special: `stranger…` and `revoked` are unknown, `expired`, `locked` and `missing` refused in other words,
`puppet…` and `bridge…` have no device, and a bridge may speak for the users in `GHOSTS`.
"""

import base64
import hashlib
import re

SERVER = "example.org"
DEVICE = "ABKJDTRWQS"
# Tokens that say nothing about their owner.
OPAQUE = {
    "mat_x5ZLr2cVtaP0nNqWfE3yKdJ7uGhB1s_aQ4mT2": "alice",
    "mat_Hq8RkY6mLw2ZbTn4PvXc9sDfJ3gA0e_Wc7uE1": "bob",
    "as_telegram_3f9c1be07d5a4c21": "bridge",
}
NATIVE = re.compile(r"syt_([A-Za-z0-9+/-]+)_\w{1,20}_\w{1,6}")
REFUSED = {
    "revoked": ("M_UNKNOWN_TOKEN", "Invalid access token passed.", False),
    "expired": ("M_UNKNOWN_TOKEN", "Access token has expired", True),
    "locked": ("M_USER_LOCKED", "User account has been locked", True),
    "missing": ("M_MISSING_TOKEN", "Missing access token", None),
}
GHOSTS = re.compile(r"@telegram_[0-9a-z=/.+-]+:" + re.escape(SERVER))


def token(name, device=0):
    """One of the tokens of that user, the same each time."""
    secret = hashlib.sha256(f"{name}/{device}".encode()).hexdigest()[:24]
    return f"mat_{name}_{secret}"


def name_in(bearer):
    """The name that a token carries; None if it carries none."""
    if bearer in OPAQUE:
        return OPAQUE[bearer]
    parts = bearer.split("_")
    if len(parts) == 3 and parts[0] == "mat":
        return parts[1]
    native = NATIVE.fullmatch(bearer)
    if native is None:
        return None
    encoded = native.group(1)
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
    except ValueError:
        return None


def owner(bearer):
    """Whose token it is; None for nobody's."""
    name = name_in(bearer)
    return None if name is None or name.startswith("stranger") or name in REFUSED else name


def user_id(name):
    return f"@{name}:{SERVER}"


def hash_of(text):
    """printf %s TEXT | sha256sum | cut -c1-16"""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def user_hash(name):
    return hash_of(user_id(name))


def whoami(bearer, query):
    """Status and JSON, as Synapse answers whoami."""
    name = name_in(bearer)
    if name in REFUSED or name is None or name.startswith("stranger"):
        code, text, soft = REFUSED.get(name, REFUSED["revoked"])
        return error(401, code, text, **({} if soft is None else {"soft_logout": soft}))
    if name.startswith("bridge"):
        return bridge("telegrambot" if bearer in OPAQUE else name, query)
    who = {"user_id": user_id(name), "is_guest": False}
    if not name.startswith("puppet"):
        who["device_id"] = DEVICE
    return 200, who


def bridge(name, query):
    """An application service: its sender alone, or whom `user_id` names inside its namespace."""
    user = query.get("user_id")
    if user is None:
        return 200, {"user_id": user_id(name), "is_guest": False}
    if not GHOSTS.fullmatch(user):
        return error(403, "M_FORBIDDEN", "Application service cannot masquerade as this user")
    answer = {"user_id": user, "is_guest": False}
    device = query.get("device_id") or query.get("org.matrix.msc3202.device_id")
    if device == "MISSING":
        return error(400, "M_UNKNOWN_DEVICE", "Application service trying to use a device that doesn't exist")
    if device:
        answer["device_id"] = device
    return 200, answer


def error(status, code, text, **more):
    return status, {"errcode": code, "error": text, **more}
