"""What was checked, and how it came out: a line for each check, and a closing line that counts them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """One check. `group` is what it is about, where a suite has groups."""

    title: str
    problem: str  # empty if the check passed
    group: object = None


class Report:
    """Collects results, and prints each as soon as it is known."""

    def __init__(self, name: str):
        self.name = name
        self.results: list[Result] = []

    def check(self, title: str, problem: object = None, *, group: object = None, note: str = "") -> bool:
        """Records that `title` holds unless `problem` is something: it then says what was seen instead."""
        text = str(problem) if problem else ""
        self.results.append(Result(title, text, group))
        line = f"{'FAIL' if text else 'ok  '} {title}{f': {note}' if note else ''}"
        print(line + (f"\n       {text}" if text else ""), flush=True)
        return not text

    def of(self, group: object) -> list[Result]:
        """The results of one group."""
        return [result for result in self.results if result.group is group]

    @property
    def failed(self) -> list[Result]:
        """The results that have a problem."""
        return [result for result in self.results if result.problem]

    def closing_line(self) -> str:
        """The last line of a run."""
        return f"{self.name}: {len(self.results) - len(self.failed)} passed, {len(self.failed)} failed"


def step(text: str) -> None:
    """Prints what happens next."""
    print(f"== {text}", flush=True)


def some(problems: list, most: int = 3) -> str:
    """The first few of many problems, and how many there were."""
    shown = "; ".join(str(problem) for problem in problems[:most])
    return shown + (f"; and {len(problems) - most} more" if len(problems) > most else "")
