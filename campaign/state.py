"""Restarts: what is known is known again after them, whatever kind of restart, and a bad file is refused."""

import asyncio
import grp
import os
import pwd
import shutil
import signal
import struct
import time
from dataclasses import replace

from tests.bed.people import token
from tests.bed.processes import wait_for

from . import variant
from .bed import Front, Nginx, Whoami
from .client import Clients


def state(report):
    """Full restart, crash, reload, resize, binary upgrade, bad state files: what is known stays known"""
    users = 2_000 if report.short else 10_000
    known = [token(f"u{n}") for n in range(users)]
    # As in a real installation the workers are not root, and own the directory of the state file.
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    front = Front(workers=2, user=f"{user} {group_of(user)}")
    with Whoami() as whoami:
        nginx = Nginx(front, report.name)
        directory = nginx.directory / "state"
        directory.mkdir()
        os.chmod(nginx.directory, 0o755)
        if os.geteuid() == 0:
            os.chown(directory, pwd.getpwnam(user).pw_uid, -1)
        file = directory / "users.state"
        nginx.front = replace(front, zone=f"users:1m state={file}")
        campaign = Restarts(report, whoami, nginx, known, file)
        with nginx:
            campaign.run()


def group_of(user):
    return grp.getgrgid(pwd.getpwnam(user).pw_gid).gr_name


class Restarts:
    def __init__(self, report, whoami, nginx, known, file):
        self.report, self.whoami, self.nginx, self.known, self.file = report, whoami, nginx, known, file

    def run(self):
        self.ask()
        self.full_restarts()
        self.reloads()
        self.upgrade()
        self.other_layout()
        self.interval_and_crash()
        self.bad_files()
        self.report.equal("lines of [crit], [alert] and [emerg]", 0,
                          sum(len(self.nginx.lines(level)) for level in ("crit", "alert", "emerg")))

    def ask(self):
        """Asks for everyone; gives the answers, and how often whoami was asked for them."""
        self.whoami.forget()

        async def everyone():
            clients = Clients()
            answers = await clients.all(self.known, at_once=32)
            clients.close()
            return answers

        answers = asyncio.run(everyone())
        return answers, self.whoami.seen()["requests"]

    def all_known(self, after):
        answers, asked = self.ask()
        hits = sum(a.status == "HIT" and a.right for a in answers)
        self.report.equal(f"{after}: hits with the user's hash, of {len(self.known):,}", len(self.known), hits)
        self.report.equal(f"{after}: whoami calls", 0, asked)

    def full_restarts(self):
        for name, number in (("QUIT", signal.SIGQUIT), ("TERM", signal.SIGTERM)):
            self.nginx.stop(number)
            self.report.equal(f"mode of the state file after {name}", "600", f"{self.file.stat().st_mode & 0o777:o}")
            start = time.monotonic()
            self.nginx.start()
            self.report.note(f"started again in {time.monotonic() - start:.2f} s, {self.file.stat().st_size:,} bytes of state")
            self.all_known(f"full restart by {name}")

    def reloads(self):
        self.nginx.reload()
        self.all_known("reload")
        counted = self.nginx.figures()["requests"]["hit"]
        self.report.at_least("hits counted over the reload", 2 * len(self.known), counted)
        for size in ("2m", "1m"):
            self.nginx.reload(replace(self.nginx.front, zone=f"users:{size} state={self.file}"))
            self.all_known(f"reload with the zone changed to {size}")

    def upgrade(self):
        """USR2, then QUIT to the old one: it saves when it ends, too late for the new one, which reads at its start."""
        nginx = self.nginx
        # Started from what was saved: at the last interval, or by a restart just before.
        nginx.stop()
        nginx.start()
        nginx.upgrade()
        self.all_known("binary upgrade (USR2, QUIT)")

    def other_layout(self):
        """To a module with other structures and another layout of the zone, and back. A binary upgrade goes by the state file,
        a reload from one library to the other; nginx-tests/replaced.t does that under load."""
        nginx, own = self.nginx, self.nginx.module
        other = nginx.directory / "other-layout.so"
        shutil.copy2(variant.module("other-layout"), other)
        for what, change in (("binary upgrade", nginx.upgrade), ("reload", nginx.reload)):
            for module, words in ((other, "to a module with another layout"), (own, "and back")):
                nginx.module = module
                nginx.configure()
                change()
                self.all_known(f"{what} {words}")
                self.save()
        taken = [line for line in nginx.lines("notice") if "taken over from another library" in line]
        self.report.equal("log lines of a library that took over from another", 2, len(taken))

    def save(self):
        """A full restart, for the file."""
        self.nginx.stop()
        self.nginx.start()

    def interval_and_crash(self):
        """SIGKILL of master and workers at once: what the last interval saved is there."""
        nginx, report = self.nginx, self.report
        if not report.short:
            nginx.stop()
            self.file.unlink()
            nginx.start()
            _, asked = self.ask()
            report.equal("whoami calls without the file", len(self.known), asked)
            start = time.monotonic()
            wait_for(self.file.exists, 70, "no state file within 70 s")
            report.at_most("saved after", 61, time.monotonic() - start, " s")
            time.sleep(0.5)
        nginx.kill()
        nginx.start()
        self.all_known("SIGKILL of the whole tree" + ("" if report.short else " after an interval"))

    def bad_files(self):
        self.nginx.stop()
        good = self.file.read_bytes()
        older = good[:8] + struct.pack("<I", 0) + good[12:]
        newer = good[:8] + struct.pack("<I", 2) + good[12:]
        flipped = good[:1000] + bytes([good[1000] ^ 1]) + good[1001:]
        cases = {"truncated": good[:-100], "empty": b"", "foreign": b"#!/bin/sh\nexit 0\n" * 200, "older": older,
                 "newer": newer, "damaged": flipped}
        for what, content in cases.items():
            self.file.write_bytes(content)
            before = len(self.nginx.lines("warn"))
            self.nginx.start()
            entries = self.nginx.figures()["entries"]
            warnings = self.nginx.lines("warn")[before:]
            clear = len(warnings) == 1 and "state file" in warnings[0] and "starts empty" in warnings[0]
            said = warnings[0].rpartition("\": ")[2] if warnings else "nothing"
            self.report.check(f"{what} file: one warning, an empty cache", f"{len(warnings)} (\"{said}\"), {entries} entries",
                              clear and entries == 0)
            self.nginx.stop()
