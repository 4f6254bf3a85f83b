"""The groups of assertions: the controls say which must fail."""

from enum import Enum

from tests.bed import report


class Group(Enum):
    """What an assertion is about."""

    ONE_WORKER = "one worker per user"
    CHOICE = "the worker that nginx's consistent hash gives for the user"
    SPREAD = "users spread"
    ANSWERS = "answers are Synapse's own"
    SESSIONS = "session list"
    LOOKUPS = "whoami"
    LOGS = "nginx's logs"
    ENDPOINTS = "every endpoint"
    WRITES = "what is written can be read"


class Report(report.Report):
    """A report whose checks each belong to a group."""

    def __init__(self):
        super().__init__("e2e")

    def about(self, group: Group, title: str, problem: object) -> None:
        """Records that `title` holds unless `problem` is something."""
        self.check(title, problem, group=group)
