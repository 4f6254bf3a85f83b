"""The log oracle: Synapse's own access logs, which name process, requester, path and User-Agent of every request."""

import re
import time
from dataclasses import dataclass

from .synapse import Synapse

# synapse/http/site.py, SynapseRequest._finished_processing:
#   127.0.11.1 - 18011 - {@alice:example.org} Processed request: … 612B 200 "GET /…/sync?… HTTP/1.1" "agent" [0 dbevts]
LINE = re.compile(r'(\S+) - \S+ - \{(.*?)\} Processed request: .*? (\d+)!? "(\S+) (\S+) [^"]*" "(.*)" \[\d+ dbevts\]')


@dataclass(frozen=True)
class Served:
    instance: str
    address: str
    requester: str
    status: int
    path: str
    agent: str

    @property
    def is_whoami(self) -> bool:
        return "/account/whoami" in self.path

    @property
    def is_sync(self) -> bool:
        return self.path.split("?")[0].endswith("/sync")


def served(synapse: Synapse) -> list[Served]:
    """Every request that any process of `synapse` has finished."""
    lines = []
    for instance in synapse.ports:
        for line in synapse.access_log(instance).read_text().splitlines():
            match = LINE.fullmatch(line)
            if match:
                address, requester, status, _method, path, agent = match.groups()
                lines.append(Served(instance, address, requester, int(status), path, agent))
    return lines


def served_by_agent(synapse: Synapse, agents: set[str], patience: float = 5.0) -> dict[str, list[Served]]:
    """What became of the requests with these agents. Synapse logs after it answered, hence the patience."""
    deadline = time.monotonic() + patience
    while True:
        found: dict[str, list[Served]] = {agent: [] for agent in agents}
        for line in served(synapse):
            if line.agent in found:
                found[line.agent].append(line)
        complete = all(any(line.is_sync for line in lines) for lines in found.values())
        if complete or time.monotonic() > deadline:
            return found
        time.sleep(0.1)
