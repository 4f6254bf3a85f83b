"""What was asserted, and how it came out."""

from dataclasses import dataclass
from enum import Enum


class Group(Enum):
    """What an assertion is about; the controls say which groups must fail."""

    ONE_WORKER = "one worker per user"
    CHOICE = "the worker that nginx's consistent hash gives for the user"
    SPREAD = "users spread"
    ANSWERS = "answers are Synapse's own"
    SESSIONS = "session list"
    LOOKUPS = "whoami"
    LOGS = "nginx's logs"


@dataclass(frozen=True)
class Result:
    group: Group
    title: str
    problem: str  # empty when the assertion held


class Report:
    def __init__(self):
        self.results: list[Result] = []

    def check(self, group: Group, title: str, problem: object) -> None:
        """Records that `title` holds unless `problem` is something: it then says what was seen instead."""
        text = str(problem) if problem else ""
        self.results.append(Result(group, title, text))
        print(f"{'FAIL' if text else 'ok  '} {title}" + (f"\n       {text}" if text else ""), flush=True)

    def of(self, group: Group) -> list[Result]:
        return [result for result in self.results if result.group is group]

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.results if result.problem]

    def closing_line(self) -> str:
        return f"e2e: {len(self.results) - len(self.failed)} passed, {len(self.failed)} failed"


def step(text: str) -> None:
    print(f"== {text}", flush=True)


def some(problems: list, most: int = 3) -> str:
    """The first few of many problems, and how many there were."""
    shown = "; ".join(str(problem) for problem in problems[:most])
    return shown + (f"; and {len(problems) - most} more" if len(problems) > most else "")
