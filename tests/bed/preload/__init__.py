"""Libraries that are preloaded into an nginx (ld.so(8), LD_PRELOAD): what they do is said in the C files beside this one."""

import subprocess
from pathlib import Path

from ..processes import BedError


def build(name: str, directory: Path) -> Path:
    """Compiles `name`.c into that directory; gives the library."""
    directory.mkdir(parents=True, exist_ok=True)
    library = directory / f"{name}.so"
    done = subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", library,
                           Path(__file__).with_name(f"{name}.c"), "-ldl"], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise BedError(f"{name}.c does not compile. Fix: apt-get install gcc libc6-dev\n{done.stderr}")
    return library
