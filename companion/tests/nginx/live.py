"""`top`, in a terminal and for scripts, over a real nginx and over logs that are rotated under it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import bed
import insight
import moving

SIZE = ("-x", "150", "-y", "40")


class Terminal:
    """A terminal of tmux with a shell in it, on a server of its own."""

    def __init__(self, folder):
        assert shutil.which("tmux"), "no tmux: scripts/companion-test installs it"
        self.socket = Path(folder, "tmux")
        self.tmux("-f", "/dev/null", "new-session", "-d", *SIZE, "env", "PS1=ready ", "TERM=screen", "sh")

    def tmux(self, *args):
        done = subprocess.run(["tmux", "-S", self.socket, *args], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout

    def type(self, text):
        self.tmux("send-keys", "-l", text)
        self.tmux("send-keys", "Enter")

    def screen(self):
        return self.tmux("capture-pane", "-p")

    def shows(self, *parts):
        moving.until(10, lambda: all(part in self.screen() for part in parts), f"not on the screen: {parts}\n{self.screen()}")

    def close(self):
        self.tmux("kill-server")


@contextlib.contextmanager
def terminal():
    with tempfile.TemporaryDirectory() as folder:
        opened = Terminal(folder)
        try:
            yield opened, Path(folder)
        finally:
            opened.close()


def line(user, worker, lookup="HIT"):
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S+00:00")
    return f"{now} /_matrix/client/v3/sync 200 user={user:016x} lookup={lookup} worker={worker}\n"


def append(log, *lines):
    with log.open("a") as file:
        file.write("".join(lines))


def check_top_is_live_and_leaves_the_terminal_as_it_was():
    """`top` shows a log as it grows and is rotated, and leaves the terminal as it was: by a key, by Ctrl-C, by a signal"""
    with terminal() as (shell, folder):
        log = folder / "access.log"
        shell.type("echo what was here before")
        for number, leave in enumerate(("q", "C-c", signal.SIGTERM)):
            append(log, line(0xa11ce, "10.0.0.1:8083"))
            shell.type(f"cd {folder}; stty -g > before; echo $$ > shell; {bed.COMPANION} top access.log --interval 1s; stty -g > after{number}; echo left {number}")
            shell.shows("10.0.0.1:8083", "heaviest users", "00000000000a11ce")
            assert "what was here" not in shell.screen(), shell.screen()
            if number == 0:
                grow(shell, log)
            if leave is signal.SIGTERM:
                os.kill(child_of(int((folder / "shell").read_text())), signal.SIGTERM)
            else:
                shell.tmux("send-keys", leave)
            shell.shows(f"left {number}", "what was here before")
            assert "heaviest users" not in shell.screen(), shell.screen()
            assert (folder / "before").read_text() == (folder / f"after{number}").read_text()
        cursor = shell.tmux("display-message", "-p", "#{cursor_flag} #{alternate_on}")
        assert cursor.strip() == "1 0", cursor


def grow(shell, log):
    append(log, line(0xb0b, "10.0.0.2:8083", "MISS"))
    shell.shows("10.0.0.2:8083", "hit ratio 50.0%")
    log.rename(log.with_name("access.log.1"))
    append(log.with_name("access.log.1"), line(0xcafe, "10.0.0.3:8083"))
    append(log, line(0xd00d, "10.0.0.4:8083"))
    shell.shows("10.0.0.3:8083", "10.0.0.4:8083", "users 4")
    # copytruncate: the same file, emptied.
    log.write_text("")
    # If it were as long as before at the next look, nobody could tell.
    time.sleep(1.5)
    append(log, line(0xe99, "10.0.0.5:8083"))
    shell.shows("10.0.0.5:8083", "users 5")


def child_of(parent):
    return int(subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=True).stdout.split()[0])


def check_top_needs_a_terminal():
    """without a terminal `top` says what to do, and ends"""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "access.log")
        log.write_text(line(1, "a:1"))
        _, err = bed.companion("top", log, expect=2)
        assert "--once" in err and "\x1b" not in err, err


def check_top_once_says_what_nginx_and_its_log_say():
    """`top --once` has the last minute of a real nginx's log, its figures, and who does not answer"""
    toml = (bed.TESTS / "deployments" / "small.toml").read_text() + '\n[status]\nlisten = "127.0.0.1:20030"\n'
    with moving.workers(("main", "127.0.0.1", 20108), ("sync1", "127.0.0.1", 20111), ("sync2", "127.0.0.1", 20112),
                        ("generic1", "127.0.0.1", 20113)), bed.running(toml) as nginx:
        log = nginx.directory / "access.log"
        client = bed.Client()
        args = ["top", log, "--once", "--interval", "1s", "--metrics", "http://127.0.0.1:20030/metrics",
                "--metrics", "http://127.0.0.1:20031/metrics"]
        for n in range(20):
            insight.ask(client, n)
        watching = subprocess.Popen([bed.COMPANION, *args, "--json"], stdout=subprocess.PIPE, text=True)
        time.sleep(0.4)
        for n in range(20):
            insight.ask(client, n)
        got = json.loads(watching.communicate(timeout=10)[0])
        requests = {worker["worker"]: worker["requests"] for group in got["log"]["groups"] for worker in group["workers"]}
        assert sum(requests.values()) == 40 and set(requests) == {"127.0.0.1:20111", "127.0.0.1:20112"}, requests
        assert got["log"]["users"] == 18
        # Of the second between the two questions.
        figures = got["figures"]
        assert figures["requests"]["hit"] == 18 and figures["requests"]["miss"] == 0, figures
        assert figures["entries"] == 18 and 0.9 <= figures["hit_ratio"] <= 1, figures
        assert len(got["silent"]) == 1 and "20031" in got["silent"][0], got["silent"]
        page = nginx.directory / "page.html"
        out, _ = bed.companion(*args, "--html", page)
        assert "the last 60 seconds" in out and "hit ratio" in out and "no figures from 127.0.0.1:20031" in out, out
        # One more plot if the requests fell into two minutes.
        insight.whole(page, insight.rendered_by_a_browser(page), plots=(3, 4))
