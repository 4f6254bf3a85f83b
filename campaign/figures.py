"""Figures as a real Prometheus scrapes them: over a reload and the death of a worker, and as the documents ask for them."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

from tests.bed.people import token
from tests.bed.processes import ROOT, BedError, wait_for

from .bed import FRONT, PORTS, WORK, Front, Nginx, Whoami
from .client import Clients

PROMETHEUS = PORTS + 5
STATUSES = ("hit", "miss", "refused", "anonymous")

# A shift, whose figures the dashboard shows; no request here reads its variable.
SHIFT = "matrix_user_hash_shift $ring old new start=2026-01-01T00:00:00Z over=1h;"


def figures(report):
    """A real Prometheus scrapes: no counter falls by reload or a worker's death, every query of ours has an answer"""
    with Whoami(), Nginx(Front(workers=2, http=SHIFT), report.name) as nginx, Prometheus() as prometheus:
        asyncio.run(life(report, nginx, prometheus))


async def life(report, nginx, prometheus):
    rounds = 2 if report.short else 15
    text = prometheus.page(f"http://127.0.0.1:{FRONT}/prometheus")
    check = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    report.check("promtool check metrics: nothing to complain of", (check.stdout + check.stderr).strip() or "nothing",
                 check.returncode == 0 and not check.stderr)
    for number in range(rounds):
        await load(number)
        nginx.reload()
        await load(number)
        os.kill(nginx.workers()[0], signal.SIGKILL)
        wait_for(lambda: len(nginx.workers()) == nginx.front.workers, 10, "the master starts no worker")
    # Until the last has been scraped.
    await asyncio.sleep(2.5)
    truth = nginx.figures()
    scrapes = int(prometheus.value("count_over_time(up[10m])"))
    report.equal(f"of {scrapes} scrapes answered", scrapes, int(prometheus.value("sum_over_time(up[10m])")))
    counted = {f'matrix_user_hash_requests_total{{status="{status}"}}': truth["requests"][status] for status in STATUSES}
    counted["matrix_user_hash_lookups_total"] = truth["lookups"]
    for metric, count in counted.items():
        report.equal(f"{metric} after {rounds} reloads and {rounds} SIGKILLs of a worker, what JSON says", count,
                     int(prometheus.value(metric)))
    counters = re.findall(r"^# TYPE (\w+) counter$", text, re.MULTILINE)
    fallen = [name for name in counters if prometheus.value(f"sum(resets({name}[10m]))")]
    report.check(f"of {len(counters)} counters none fell between two scrapes", " ".join(fallen) or "none",
                 len(counters) > 8 and not fallen)
    p99 = prometheus.value("histogram_quantile(0.99, rate(matrix_user_hash_lookup_duration_seconds_bucket[10m]))")
    report.check("p99 of whoami from the histogram: a time", f"{p99 * 1000:.1f} ms", 0 < p99 < 5)
    queries = dashboard() + documented()
    empty = [query for query in queries if not prometheus.query(query)]
    report.check(f"the {len(queries)} queries of the dashboard and of docs/metrics.md: each has an answer",
                 "; ".join(empty) or "all", not empty)
    rules = prometheus.rules()
    report.check("alerts of docs/metrics.md: Prometheus evaluates each", ", ".join(f"{r['name']} {r['health']}" for r in rules),
                 len(rules) >= 4 and all(rule["health"] == "ok" for rule in rules))


async def load(number):
    """Hits, misses, refused and anonymous requests."""
    clients = Clients()
    users = [token(f"u{n}") for n in range(number * 20, number * 20 + 120)]
    await clients.all([*users, *users, *(token(f"stranger{number}x{n}") for n in range(10)), "no token\x7f"], at_once=16)
    clients.close()


def dashboard():
    """Every query of the Grafana dashboard, with Grafana's variables filled in."""
    panels = json.loads((ROOT / "contrib/grafana/matrix-user-hash.json").read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    for variable, value in (("$__rate_interval", "1m"), ("$__range", "10m"), ("$zone", "users")):
        found = [query.replace(variable, value) for query in found]
    return found


def documented():
    return re.findall(r"^```promql\n(.*?)^```", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE | re.DOTALL)


def alerts():
    """The file of alerts that docs/metrics.md shows."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if block.startswith("groups:")]
    return found


class Prometheus:
    """Debian's prometheus, scraping the front every second. Use as a context."""

    CONFIGURATION = """\
global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: [{directory}/alerts.yml]
scrape_configs:
  - job_name: matrix_user_hash
    metrics_path: /prometheus
    static_configs: [{{ targets: ["127.0.0.1:{port}"] }}]
"""

    def __enter__(self):
        if shutil.which("prometheus") is None:
            raise BedError("there is no prometheus. Fix: apt-get install prometheus, without starting its service")
        directory = WORK / f"run/prometheus-{PROMETHEUS}"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        (directory / "alerts.yml").write_text(alerts())
        (directory / "prometheus.yml").write_text(self.CONFIGURATION.format(directory=directory, port=FRONT))
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
             f"--web.listen-address=127.0.0.1:{PROMETHEUS}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(directory / "log").open("w"))
        try:
            wait_for(self.ready, 60, f"Prometheus did not start: see {directory}/log")
        except BedError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(10)

    def page(self, url):
        with urllib.request.urlopen(url, timeout=10) as page:
            return page.read().decode()

    def api(self, path, **arguments):
        url = f"http://127.0.0.1:{PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        return json.loads(self.page(url))["data"]

    def ready(self):
        """It has scraped at least once. Before it listens there is no connection, and before it has read its data it says 503."""
        try:
            return bool(self.api("query", query="up == 1")["result"])
        except OSError:
            time.sleep(0.1)
            return False

    def query(self, query):
        try:
            return self.api("query", query=query)["result"]
        except urllib.error.HTTPError as error:
            raise BedError(f"Prometheus refuses {query}: {error.read().decode()}") from None

    def value(self, query):
        result = self.query(query)
        if len(result) != 1:
            raise BedError(f"Prometheus has {len(result)} values of {query}, not one")
        return float(result[0]["value"][1])

    def rules(self):
        return [rule for group in self.api("rules")["groups"] for rule in group["rules"]]
