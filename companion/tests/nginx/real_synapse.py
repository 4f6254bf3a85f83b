"""A real Synapse for `real.py`, on the bed of scripts/e2e: runs until its standard input ends.

Run by the Python that has Synapse, with the folder and the first port as arguments; says `ready` when it is.
"""

import sys
from pathlib import Path

from e2e.synapse import Synapse

MAX_UPLOAD = 14 << 20


class Bed(Synapse):
    """The bed's Synapse with a limit of our own, and federation and media on main."""

    def homeserver(self):
        config = super().homeserver()
        config["listeners"][0]["resources"] = [{"names": ["client", "federation", "media"]}]
        config["max_upload_size"] = MAX_UPLOAD
        return config


bed = Bed(Path(sys.argv[1]), int(sys.argv[2]))
try:
    bed.start()
    print("ready", flush=True)
    sys.stdin.read()
finally:
    bed.stop()
