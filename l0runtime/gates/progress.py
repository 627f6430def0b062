"""How does a long run show how far it is?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Told after each step how many of `total` steps are done, with a word on what is being done."""

    def __call__(self, done: int, total: int, note: str) -> None: ...


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A bar on stderr with the time left, to be passed to Trainer.run as its progress; gone when the block ends."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def report(done: int, total: int, note: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{title}: {note}")

        yield report
