"""Progress bars, or one bar with the time left over a job of many steps, of which their bars become parts."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm

_jobs: list[JobProgress] = []


def progress_bar(iterable: Any = None, **options: Any) -> Any:
    """A bar of tqdm, which takes these arguments; in the step of a job a part of the job's bar."""
    return _Part(iterable, **options) if _jobs else tqdm(iterable, **options)


class JobProgress:
    """One bar over the steps of a job, with the time that is left.

    How long a step takes is a guess until it runs; what has been measured since corrects the guesses for the others.
    """

    def __init__(self, guesses: Mapping[str, tuple[str, float]], file: TextIO | None = None) -> None:
        """Takes the steps that are to run.

        Args:
            guesses: By step, the beginning of the description of the bar that tells how far it is, and how many seconds
                it may take.
            file: Where the bar is drawn; default: standard error.
        """
        self._guesses = dict(guesses)
        self._step, self._doing, self._share, self._began = "", "", 0.0, time.monotonic()
        self._first: tuple[float, float] | None = None
        self._guessed = self._measured = 0.0
        form = "{percentage:3.0f}%|{bar:24}| {elapsed} {desc}"
        # A log gets a line now and then.
        self._pause, self._drawn = (0.1 if (file or sys.stderr).isatty() else 10.0), self._began
        self._bar = plain_tqdm(total=1000, bar_format=form, file=file, leave=True)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Runs a step, whose bars count."""
        self._step, self._doing, self._share, self._began = name, "", 0.0, time.monotonic()
        self._first = None
        _jobs.append(self)
        self._show(force=True)
        try:
            yield
        finally:
            _jobs.remove(self)
            self._doing = ""
        self._guessed += self._guesses.pop(name)[1]
        self._measured += time.monotonic() - self._began
        self._share, self._first = 0.0, None
        self._show(force=True)

    def report(self, part: str, share: float) -> None:
        """The bar with this description is so far, from 0 to 1."""
        tells, _ = self._guesses[self._step]
        if tells and part.startswith(tells):
            # What comes before, such as features that are cached, says nothing of how fast it goes.
            self._first = self._first or (time.monotonic(), share)
            self._share = max(share, self._share)
        else:
            self._doing = f" ({part.rstrip(': ')} {share:.0%})" if share < 1 else ""
        self._show()

    def say(self, line: str) -> None:
        """Prints a line to standard output, above the bar."""
        self._bar.clear()
        print(line, flush=True)
        self._bar.refresh()

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()

    def seconds_left(self) -> float:
        """From guesses, and from what has been measured."""
        own = self._guesses.get(self._step, ("", 0.0))[1]
        since, first = self._first or (time.monotonic(), self._share)
        spent, done = time.monotonic() - since, self._share - first
        guessed, measured = (
            (self._guessed + own * done, self._measured + spent) if done else (self._guessed, self._measured)
        )
        scale = measured / guessed if guessed else 1.0
        later = sum(guess for name, (_, guess) in self._guesses.items() if name != self._step)
        return scale * later + (spent * (1 - self._share) / done if done else scale * own)

    def _show(self, force: bool = False) -> None:
        guess = self._guesses.get(self._step, ("", 0.0))[1]
        whole = self._guessed + sum(guess for _, guess in self._guesses.values())
        self._bar.n = round(1000 * (self._guessed + self._share * guess) / whole) if whole else 1000
        left = f", about {_in_words(self.seconds_left())} left" if self._guesses else ""
        self._bar.set_description_str(f"{self._step}{self._doing}{left}", refresh=False)
        # Not by `update`, which looks at how far the bar is rather than at the time.
        if force or time.monotonic() - self._drawn >= self._pause:
            self._drawn = time.monotonic()
            self._bar.refresh()


class _Part(plain_tqdm):
    """A bar that tells a job how far it is rather than being drawn."""

    def __init__(self, iterable: Any = None, **options: Any) -> None:
        super().__init__(iterable, **{**options, "file": io.StringIO(), "disable": False, "leave": False})

    def display(self, *_: Any, **__: Any) -> bool:
        if self.total and _jobs:
            _jobs[-1].report(self.desc, min(1.0, self.n / self.total))
        return True


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
