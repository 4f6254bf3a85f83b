"""nginx as a container runs it: an ordinary user, a root file system that nobody can write, one folder for what must be."""

import os
import subprocess
import time

import bed

INSIDE = r"""
set -e
mount --make-rprivate /
# The new /tmp would hide a checkout that lies below the old one.
root=$1
shift
mount --bind "$root" /mnt
mount -t tmpfs -o mode=1777,size=64m tmpfs /tmp
case $root in
/tmp/*)
    mkdir -p "$root"
    mount --bind /mnt "$root"
    mount -o remount,bind,ro "$root"
    ;;
esac
mount -o remount,bind,ro /
mount -o remount,bind,ro /mnt
if touch /nobody-may-write-here 2>/dev/null; then echo "the root is writable" >&2; exit 9; fi
exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all "$@"
"""


def check_unprivileged_with_a_read_only_root():
    """the rendered configuration runs as an ordinary user on a read-only root, with a writable /tmp and nothing else"""
    workers = bed.Workers()
    for name, port in [("main", 20108), ("sync1", 20111), ("sync2", 20112), ("generic1", 20113)]:
        workers.start(name, port=port)
    base = bed.ROOT / "build" / "companion" / "read-only"
    base.mkdir(parents=True, exist_ok=True)
    bed.prepare(base)
    deployment = bed.TESTS / "deployments" / "small.toml"
    # The golden deployment as it is: its defaults are what is tried here. Logs go to standard output.
    bed.companion("render", "-d", deployment, "--output", base, "--nginx", bed.NGINX)
    # As runc does it: the pipes belong to the user of the container, or nobody could open /dev/stdout.
    ends = [os.pipe(), os.pipe()]
    for _, end in ends:
        os.fchown(end, 65534, 65534)
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", INSIDE, "sh", bed.ROOT, bed.NGINX, "-p", base, "-c", base / "nginx.conf", "-e", "stderr",
         "-g", "daemon off;"],
        stdout=ends[0][1], stderr=ends[1][1])
    for _, end in ends:
        os.close(end)
    try:
        client = bed.Client()
        for _ in range(100):
            try:
                answer = client.ask("GET", "/_matrix/client/v3/sync?since=s1", {"Authorization": "Bearer syt_alice_abcdefghijklmnopqrst_0ab1cd"})
                break
            except ConnectionRefusedError:
                assert process.poll() is None, os.read(ends[1][0], 65536)
                time.sleep(0.05)
        assert answer.status == 200 and answer.worker.startswith("sync"), answer.status
        # Large enough for a temporary file.
        big = client.ask("POST", "/_matrix/media/v3/upload", body=b"x" * 3_000_000)
        assert (big.status, big.json()["body"]) == (200, 3_000_000), big.status
        owner = os.stat(f"/proc/{process.pid}").st_uid
        assert owner == 65534, owner
    finally:
        process.terminate()
        process.wait(10)
        out, err = (os.read(end, 1 << 20) for end, _ in ends)
        workers.stop_all()
    assert b"group=synapse_sync" in out, (out, err)
    assert not [line for line in err.splitlines() if b"[emerg]" in line or b"[alert]" in line or b"[warn]" in line], err
