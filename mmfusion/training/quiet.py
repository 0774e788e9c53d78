"""A job of several commands says what matters: what else they print and log goes into a file."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

import datasets
from transformers.utils import logging as transformers_logging

# Whose messages would be drawn into a bar, and which of them are for the user.
_LOGGERS = {"mmfusion": logging.WARNING, "lightning": logging.ERROR, "lightning.pytorch": logging.ERROR}


class Log:
    """Where a job's commands print.

    Attributes:
        file: The log.
        say: Shows a line to the user.
    """

    def __init__(self, file: TextIO, say: Callable[[str], None]) -> None:
        self.file, self.say = file, say

    @contextmanager
    def printing(self) -> Iterator[None]:
        """Sends into the log what is printed."""
        with redirect_stdout(self.file), redirect_stderr(self.file):
            yield


class _Teller(logging.Handler):
    def __init__(self, log: Log, level: int) -> None:
        super().__init__(level)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        stdout, sys.stdout = sys.stdout, sys.__stdout__ or sys.stdout
        try:
            self.log.say(record.getMessage())
        finally:
            sys.stdout = stdout


@contextmanager
def quietly(path: Path) -> Iterator[Log]:
    """Appends messages of commands to a file and shows warnings of ours alone; bars of other libraries are off.

    Args:
        path: The log.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    bars, shown = transformers_logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    level = transformers_logging.get_verbosity()
    before = {name: (logging.getLogger(name).propagate, logging.getLogger(name).handlers) for name in _LOGGERS}
    with path.open("a", encoding="utf-8") as file, warnings.catch_warnings():
        log = Log(file, print)
        written = logging.StreamHandler(file)
        for name, shown_from in _LOGGERS.items():
            logger = logging.getLogger(name)
            logger.propagate, logger.handlers = False, [written, _Teller(log, shown_from)]
        logging.captureWarnings(True)
        logging.getLogger("py.warnings").handlers = [written]
        logging.getLogger("py.warnings").propagate = False
        transformers_logging.disable_progress_bar()
        transformers_logging.set_verbosity_error()
        datasets.disable_progress_bars()
        try:
            yield log
        finally:
            logging.captureWarnings(False)
            for name, (propagate, handlers) in before.items():
                logging.getLogger(name).propagate, logging.getLogger(name).handlers = propagate, handlers
            transformers_logging.set_verbosity(level)
            if bars:
                transformers_logging.enable_progress_bar()
            if shown:
                datasets.enable_progress_bars()
