"""Tokens that look real, whose they are, and the hash that nginx must give them.

A user's token carries the user's name, so that no stand-in for whoami needs a list: `mat_` and the name, as made by the
Matrix Authentication Service but for the name in it. `stranger` tokens belong to nobody.
"""

import hashlib


def token(name, device=0):
    """One of the tokens of that user, the same each time."""
    secret = hashlib.sha256(f"{name}/{device}".encode()).hexdigest()[:24]
    return f"mat_{name}_{secret}"


def user_id(name):
    return f"@{name}:example.org"


def owner(bearer):
    """Whose token it is; None for nobody's."""
    parts = bearer.split("_")
    if len(parts) != 3 or parts[0] != "mat" or parts[1].startswith("stranger"):
        return None
    return parts[1]


def hash_of(text):
    """printf %s TEXT | sha256sum | cut -c1-16"""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def user_hash(name):
    return hash_of(user_id(name))
