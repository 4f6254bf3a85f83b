"""The variants that are compared: one nginx, one group of sync workers, and five ways to choose one of them.

Each is a few lines of configuration in the same places; whatever is not shown here is equal. The scripts beside this file
are what an operator would write today.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from campaign.bed import WHOAMI
from tests.bed.nginx import module

from ..bed import FRONT, SILENT, TEMPORARY, WORKERS, Nginx

HERE = Path(__file__).resolve().parent
# As libnginx-mod-http-js and -lua have them in Debian.
MODULES = Path(os.environ.get("NGINX_MODULES", "/usr/lib/nginx/modules"))
ASK = f"http://127.0.0.1:{WHOAMI}"


@dataclass(frozen=True)
class Variant:
    """How one variant is configured."""

    name: str
    key: str
    modules: tuple = ()
    http: str = ""
    server: str = ""
    location: str = ""
    # The size of what it remembers tokens in, and a state file from which it is filled first. It is then saved no more: a
    # save reads the whole zone, and would be counted as the work of the requests that happen to come meanwhile.
    zone: str = "1m"
    state: str = ""
    reuseport: bool = False
    # Names of the same group of sync workers, and which of them a request goes to.
    groups: tuple = ("sync_workers",)
    group: str = "sync_workers"

    def start(self, workers=1, wrapper=()):
        """An `Nginx` of it, to be used as a context."""
        first = self.render(f" state={self.state}") if self.state else None
        return Nginx("variant", self.render(), FRONT, workers, wrapper, first)

    def render(self, state=""):
        values = {"zone": self.zone, "state": state, "here": HERE, "whoami": ASK}

        def fill(text):
            return text.format(**values)

        loads = "\n".join(f"load_module {path() if callable(path) else MODULES / path};" for path in self.modules)
        servers = "\n".join(f"        server 127.0.0.1:{port};" for port in WORKERS)
        groups = "\n".join(self.upstream(name, servers) for name in self.groups)
        return f"""\
{loads}
user root;
events {{ worker_connections 30000; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    keepalive_time 24h;
    large_client_header_buffers 4 16k;
    {TEMPORARY}
    {fill(self.http)}
    upstream whoami {{ server 127.0.0.1:{WHOAMI} max_fails=0; keepalive 64; }}
{groups}
    upstream pending {{ hash {self.key} consistent; server 127.0.0.1:{SILENT}; keepalive 64; }}
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_read_timeout 300s;
    server {{
        listen 127.0.0.1:{FRONT} backlog=4096{" reuseport" if self.reuseport else ""};
        {fill(self.server)}
        location /_matrix/ {{
            {fill(self.location)}
            proxy_pass http://{self.group};
        }}
        # Without a worker behind it: ten thousand at once need only one descriptor each.
        location /answered/ {{
            {fill(self.location)}
            empty_gif;
        }}
        # A sync for whom there is nothing new.
        location /pending/ {{
            {fill(self.location)}
            proxy_pass http://pending;
        }}
    }}
}}
"""

    def upstream(self, name, servers):
        return f"""\
    upstream {name} {{
        zone {name} 256k;
        hash {self.key} consistent;
{servers}
        keepalive 64;
        keepalive_requests 100000000;
    }}"""

    def with_(self, **changes):
        return replace(self, **changes)


# With a second location, as all others have one: nginx compares a request's path with it.
BASELINE = Variant("baseline", "$http_authorization", server="location = /count {{ empty_gif; }}")

OURS = Variant(
    "ours", "$matrix_user_hash", modules=(module,),
    http="matrix_user_hash_zone users:{zone}{state};",
    location="matrix_user_hash http://whoami zone=users;",
    server="location = /count {{ matrix_user_hash_metrics; }}")

# Before nginx's own limits. Not compared with the scripts, but with ours.
EARLY = OURS.with_(name="ours-preaccess", location=OURS.location + " matrix_user_hash_phase preaccess;")

# The status names the group. It is known before it is read, so reading it costs nothing. nginx looks for a group's name in the
# order of the file: half of a shift's users find theirs before HIT, and half after it.
BY_STATUS = OURS.with_(name="status", groups=("MISS", "OLD", "HIT", "NEW"), group="$matrix_user_hash_status")
# What else could name it.
BY_SET = BY_STATUS.with_(name="set", location=BY_STATUS.location + " set $group HIT;", group="$group")
SPLIT = BY_STATUS.with_(name="split_clients", group="$group",
                        http=BY_STATUS.http + " split_clients $matrix_user_hash $group {{ 50% OLD; * NEW; }}")


def shifting(start, hours):
    """With a shift: one that nobody reads, and one that names the group."""
    shift = f" matrix_user_hash_shift $group OLD NEW start={start} over={hours}h;"
    unread = BY_STATUS.with_(name="shift, not read", http=BY_STATUS.http + shift)
    return unread, unread.with_(name="shift", group="$group")


SUBREQUEST = Variant(
    "njs-subrequest", "$user", modules=("ngx_http_js_module.so",),
    http="js_import main from {here}/whoami_subrequest.js; js_shared_dict_zone zone=users:{zone};",
    location="auth_request /_user; auth_request_set $user $sent_http_x_user;",
    server="""set $whoami_url {whoami}/_matrix/client/v3/account/whoami;
        location = /_user {{ internal; proxy_pass_request_body off; js_content main.user; }}
        location = /count {{ js_content main.count; }}""")

ACCESS = Variant(
    "njs-access", "$user", modules=("ngx_http_js_module.so",),
    http="""js_import main from {here}/whoami_access.js; js_shared_dict_zone zone=users:{zone} timeout=1h evict;
    js_var $user; js_fetch_keepalive 64;""",
    location="js_access main.user;",
    server="""set $whoami_url {whoami}/_matrix/client/v3/account/whoami;
        location = /count {{ js_content main.count; }}""")

LUA = Variant(
    "lua", "$user", modules=("ndk_http_module.so", "ngx_http_lua_module.so"),
    http="lua_package_path '{here}/?.lua;;'; lua_shared_dict users {zone};",
    location="access_by_lua_block {{ require('whoami').user() }}",
    server="""set $user "";
        location = /_whoami {{
            internal;
            proxy_pass_request_body off;
            proxy_pass http://whoami/_matrix/client/v3/account/whoami;
        }}
        location = /count {{ content_by_lua_block {{ require('whoami').count() }} }}""")

ALL = (BASELINE, OURS, SUBREQUEST, ACCESS, LUA)


def available():
    """Those whose modules this nginx has."""
    return [variant for variant in ALL if all(callable(path) or (MODULES / path).is_file() for path in variant.modules)]
