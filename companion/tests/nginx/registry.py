"""What an installed Synapse serves, and where: run by the Python that has Synapse; prints JSON.

It asks what synapse/_scripts/generate_workers_map.py asks, before that script shortens the patterns for print: each
endpoint with its method, and whether main alone registers it, or workers too. What only media repositories register is
asked for beside it. Once with defaults and once with every experimental endpoint, for an operator may have them on.
"""

import inspect
import json
import logging
import re
import sys
import tempfile
from pathlib import Path

logging.disable(logging.CRITICAL)

from signedjson.key import generate_signing_key, write_signing_keys  # noqa: E402

from synapse._scripts import generate_workers_map as script  # noqa: E402
from synapse.config import experimental  # noqa: E402
from synapse.config.homeserver import HomeServerConfig  # noqa: E402
from synapse.rest import admin  # noqa: E402
from synapse.rest.client import media  # noqa: E402
from synapse.rest.media.media_repository_resource import MediaRepositoryResource  # noqa: E402

WORKER = "synapse.app.generic_worker"
# Every switch that the installed Synapse has, so that those of a new one are on too.
EXPERIMENTAL = sorted(set(re.findall(r'"(msc\d+_enabled)"', inspect.getsource(experimental)))) + [
    "msc3983_appservice_otk_claims",
]


def config(folder, everything):
    key = Path(folder) / "signing.key"
    with key.open("w") as stream:
        write_signing_keys(stream, [generate_signing_key("a_test")])
    plain = {
        "server_name": "example.org", "report_stats": False, "macaroon_secret_key": "not a secret",
        "signing_key_path": str(key), "media_store_path": str(Path(folder) / "media"), "pid_file": str(Path(folder) / "pid"),
        "suppress_key_server_warning": True, "database": {"name": "sqlite3", "args": {"database": ":memory:"}},
    }
    if everything:
        plain["retention"] = {"enabled": True}
        plain["matrix_authentication_service"] = {"enabled": True, "endpoint": "http://127.0.0.1:1/", "secret": "none"}
        plain["experimental_features"] = {name: True for name in EXPERIMENTAL} | {"msc4388_mode": "open"}
    parsed = HomeServerConfig()
    parsed.parse_config_dict(plain, "", "")
    return parsed


def registrations(parsed, app):
    """Client, federation and key endpoints as the script finds them; administration and media as the listeners add them."""
    homeserver = script.MockHomeserver(parsed, app)
    homeserver.setup()
    found = dict(script.get_registered_paths_for_hs(homeserver))
    administration = script.EnumerationResource(is_worker=app is not None)
    admin.register_servlets(homeserver, administration)
    found |= administration.registrations
    repository = script.EnumerationResource(is_worker=app is not None)
    admin.register_servlets_for_media_repo(homeserver, repository)
    media.register_servlets(homeserver, repository)
    MediaRepositoryResource.register_servlets(repository, homeserver)
    return set(found), set(repository.registrations)


def main():
    where = {}
    for everything in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            parsed = config(folder, everything)
            on_main, repository = registrations(parsed, None)
            on_workers, _ = registrations(parsed, WORKER)
        for endpoint in on_main | on_workers | repository:
            kind = "media" if endpoint in repository else "worker" if endpoint in on_workers else "main"
            # What one configuration gives to workers and the other to main alone is main's: that is always right.
            where[endpoint] = "main" if where.get(endpoint, kind) != kind else kind
    # Files that are served for media, but registered with federation.
    for method, pattern in list(where):
        if pattern.startswith("^/_matrix/federation/v1/media/"):
            where[method, pattern] = "media"
    json.dump([[method, pattern, kind] for (method, pattern), kind in sorted(where.items())], sys.stdout)


main()
