"""What a person, or a program, sees while stages work: progress bars and lines on stderr; with --json one JSON object a line on stdout."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

_JSON: ContextVar[bool] = ContextVar("genmodels_json", default=False)
_QUIET: ContextVar[bool] = ContextVar("genmodels_quiet", default=False)


def speak_json(on: bool) -> None:
    """From here on stdout belongs to machines."""
    _JSON.set(on)


def speaks_json() -> bool:
    return _JSON.get()


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, stages say nothing."""
    token = _QUIET.set(True)
    try:
        yield
    finally:
        _QUIET.reset(token)


def emit(**record: Any) -> None:
    """One JSON object on stdout, when stdout belongs to machines; else nothing."""
    if speaks_json():
        sys.stdout.write(json.dumps(record, default=str) + "\n")
        sys.stdout.flush()


def say(text: str, **record: Any) -> None:
    """A line for a person (stderr); `record`, if any, is the same for a machine."""
    if _QUIET.get():
        return
    _stderr().print(text, highlight=False, soft_wrap=True)
    if record:
        emit(**record)


def result(text: str, *, markup: bool = False) -> None:
    """What the command was asked for: stdout, unless that belongs to machines. Brackets of file names stay; with markup they are styles."""
    if not speaks_json():
        Console(soft_wrap=True, markup=markup).print(text, highlight=False)


class Bar:
    """A stage's progress. total and done are in the stage's own unit (files, steps, trials, images)."""

    def __init__(self, stage: str, unit: str, progress: Progress, task: TaskID) -> None:
        self.stage, self._unit, self._progress, self._task = stage, unit, progress, task

    def to(self, done: float, *, total: float | None = None, note: str | None = None) -> None:
        """Moves the bar to `done`, with a short note behind it (loss 1.83, 12 bad)."""
        total = self._progress.tasks[self._task].total if total is None else total
        count = f"{done:,.0f}" + ("" if total is None else f"/{total:,.0f}") + f" {self._unit}"
        fields: dict[str, Any] = {"count": count} if note is None else {"count": count, "note": note}
        self._progress.update(self._task, completed=done, total=total, **fields)

    def end(self) -> None:
        """Whatever was left to do was not needed: the stage is done."""
        done = self._progress.tasks[self._task].completed
        self._progress.update(self._task, total=done or 1, completed=done or 1)


class _Tail(ProgressColumn):
    """How much, how long, and the note; where the line is too narrow, the note is what is cut."""

    def render(self, task: Task) -> Text:
        minutes, seconds = divmod(int(task.elapsed or 0), 60)
        return Text(f"{task.fields['count']}  {minutes}:{seconds:02}  {task.fields['note']}", no_wrap=True, overflow="ellipsis")


@contextmanager
def stage(name: str, *, total: float | None = None, unit: str = "") -> Iterator[Bar]:
    """A progress bar for one stage; on leaving it says how it ended and how long it took."""
    columns = (TextColumn("[bold]{task.description:<9}"), BarColumn(bar_width=20), _Tail())
    emit(event="stage", stage=name, status="started")
    with Progress(*columns, console=_stderr()) as progress:
        bar = Bar(name, unit, progress, progress.add_task(name, total=total, note="", count=""))
        yield bar
        bar.end()
    emit(event="stage", stage=name, status="done", seconds=round(progress.tasks[0].elapsed or 0, 2))


def done(name: str, where: str) -> None:
    """This stage's output exists already."""
    say(f"[bold]{name:<9}[/bold] done already: {escape(where)}", event="stage", stage=name, status="reused", uri=where)


def _stderr() -> Console:
    return Console(file=sys.stderr)
