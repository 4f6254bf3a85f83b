"""python3 -m tests.foreign.check FOREIGN-MODULE: somebody else's module that limits in the PREACCESS phase sees the user.

In:  the library of ngx_http_foreign_module.c, and NGINX_BINARY and MODULE, all three of one nginx.
     PORT is the first of three ports on 127.0.0.1 (28041).
Out: a line for each thing that holds; exit status 1 at the first that does not.

nginx runs the handlers of a phase in the reverse order of their modules, so without `matrix_user_hash_phase preaccess` the
user is never known to it, and with it always, whichever of the two was loaded first.
"""

import os
import sys
import tempfile
from itertools import count
from pathlib import Path

from tests.bed.client import Client
from tests.bed.homeserver import Homeserver
from tests.bed.nginx import Nginx, module, temporary_paths, user_root
from tests.bed.people import token

PORT = int(os.environ.get("PORT", "28041"))
WHOAMI, CONTROL = PORT + 1, PORT + 2
OURS, FOREIGN = "ours", "the other module"
devices = count()


def configuration(order, paths, folder, phase) -> str:
    loads = "\n".join(f"load_module {paths[name]};" for name in order)
    return f"""\
{loads}
{user_root()}
pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off;
    {temporary_paths(folder)}
    matrix_user_hash_zone users:1m;
    {phase}
    # nginx's own limit, which is none here: beside it the phase has more than our handler.
    limit_req_zone $matrix_user_hash zone=person:1m rate=1000r/s;
    server {{
        listen 127.0.0.1:{PORT};
        location / {{
            matrix_user_hash http://127.0.0.1:{WHOAMI} zone=users;
            foreign_needs $matrix_user_hash;
            limit_req zone=person burst=1000 nodelay;
            empty_gif;
        }}
        location /both {{
            matrix_user_hash http://127.0.0.1:{WHOAMI} zone=users;
            matrix_user_hash_phase precontent;
            foreign_needs $matrix_user_hash;
            empty_gif;
        }}
    }}
}}
"""


def statuses(path: str) -> list[int]:
    """Of a token that is looked up, and of the same when it is known."""
    bearer = token("alice", next(devices))
    with Client(PORT) as client:
        return [client.ask("GET", path, {"Authorization": f"Bearer {bearer}"}).status for _ in range(2)]


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    paths = {OURS: module(), FOREIGN: Path(sys.argv[1]).resolve()}
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        # Worker processes of another user must reach what is in it.
        folder.chmod(0o755)
        with Homeserver([WHOAMI], CONTROL, folder / "homeserver"):
            for order in ((FOREIGN, OURS), (OURS, FOREIGN)):
                for phase, path, wanted in (("", "/", 403), ("matrix_user_hash_phase preaccess;", "/", 200),
                                            ("matrix_user_hash_phase preaccess;", "/both", 403)):
                    with Nginx(folder, configuration(order, paths, folder, phase), port=PORT):
                        got = statuses(path)
                    what = f"{phase or 'by default'} {path}, {order[0]} is loaded first: {got}"
                    print(f"{'ok' if got == [wanted] * 2 else 'FAILED'}: {what}", flush=True)
                    failed += got != [wanted] * 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
