"""What an installed Synapse serves, and where: run by the Python that has Synapse; prints JSON.

It asks what synapse/_scripts/generate_workers_map.py asks, before that script shortens the patterns for print: each
endpoint with its method, and whether main alone registers it, or workers too. What only media repositories register is
asked for beside it, and so is the tree of resources that the listeners mount: what is there is no servlet, so the script
does not see it. Once with defaults and once with every experimental endpoint, for an operator may have them on.
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

from twisted.web.resource import Resource  # noqa: E402

from synapse._scripts import generate_workers_map as script  # noqa: E402
from synapse.app.generic_worker import GenericWorkerServer  # noqa: E402
from synapse.app import generic_worker  # noqa: E402
from synapse.app.homeserver import SynapseHomeServer  # noqa: E402
from synapse.config import experimental  # noqa: E402
from synapse.config.homeserver import HomeServerConfig  # noqa: E402
from synapse.config.server import parse_listener_def  # noqa: E402
from synapse.http.server import JsonResource  # noqa: E402
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
        plain["federation_whitelist_endpoint_enabled"] = True
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
    return set(found) | mounted(homeserver, app), set(repository.registrations)


class Mounted(Exception):
    """The tree that a listener was about to serve."""


def mounted(homeserver, app):
    """Paths of resources that are no servlets. A listener has all that main or a worker may serve to somebody outside."""
    if app is None:
        names = ["client", "federation", "keys", "media", "openid", "static"]
        trees = [SynapseHomeServer._configure_named_resource(homeserver, name) for name in names]
        tree = {path: resource for tree in trees for path, resource in tree.items()}
        # These two are in _listener_http() itself, and the second wants an operator's own templates.
        tree |= {"/health": None, "/_matrix/consent": None}
    else:
        def capture(resources, _):
            raise Mounted(resources)

        generic_worker.create_resource_tree = capture
        resources = [{"names": ["client", "federation", "keys", "media", "openid"]}]
        listener = parse_listener_def(0, {"port": 1, "type": "http", "resources": resources})
        try:
            GenericWorkerServer._listen_http(homeserver, listener)
        except Mounted as found:
            tree = found.args[0]
    found = set()
    for path, resource in tree.items():
        # Those that hold servlets only answer what the servlets' patterns say.
        if not isinstance(resource, JsonResource):
            found |= answered(path, resource)
    return found


def answered(path, resource):
    """What a resource and those that it has of its own answer: (method, pattern)."""
    methods = [method for method in ("GET", "POST", "PUT", "DELETE")
               if any(hasattr(resource, f"{prefix}_{method}") for prefix in ("render", "_async_render"))]
    children = resource.listStaticNames() if isinstance(resource, Resource) else []
    # A resource of Twisted's own renders files whatever the method; one without methods and children is not ours to judge.
    if not methods and not children:
        methods = ["GET"]
    found = {(method, f"^{re.escape(path)}$") for method in methods}
    return found.union(*(answered(f"{path}/{name.decode()}", resource.children[name]) for name in children))


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
