"""The log: on the terminal what a person needs, in log.txt everything."""

from __future__ import annotations

import logging
import sys
from logging.handlers import MemoryHandler

from tqdm import tqdm

from occluded_reid.utils.terminal import escape

LOGGERS = ("fastreid", "occluded_reid", "fed_plugin", "aonet_plugin", "gallery_search")


def setup_logging(folder: str | None = None, *, keep: bool = False) -> None:
    """Log to the terminal (on rank 0) and to log.txt in an existing ``folder`` (on every rank).

    Debug messages reach the file only. Without a folder there is none; ``keep`` then keeps all
    messages for the log.txt of the next call.
    """
    from torch import distributed  # slow to import

    handlers: list[logging.Handler] = []
    in_group = distributed.is_available() and distributed.is_initialized()
    rank = distributed.get_rank() if in_group else 0
    if rank == 0:
        handlers.append(_take_terminal())
    if folder is not None:
        suffix = f".rank{rank}" if rank else ""
        file_handler = logging.FileHandler(f"{folder}/log.txt{suffix}", encoding="utf-8")
        file_format = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"
        file_handler.setFormatter(EscapingFormatter(file_format, "%m/%d %H:%M:%S"))
        for record in _take_kept():
            file_handler.handle(record)
        handlers.append(file_handler)
    elif keep:
        keeper = MemoryHandler(capacity=10**6, flushLevel=logging.CRITICAL + 1)
        keeper.buffer = _take_kept()
        handlers.append(keeper)
    for name in LOGGERS:
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            handler.close()
        logger.handlers = list(handlers)
        logger.setLevel(logging.DEBUG)
        logger.propagate = False


class EscapingFormatter(logging.Formatter):
    """Shows the control characters in names of files as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a message."""
        return escape(super().format(record))


def _take_terminal() -> logging.Handler:
    """Return the terminal's handler, which goes on if messages were kept for this call."""
    handlers = logging.getLogger(LOGGERS[0]).handlers
    is_kept = any(isinstance(each, MemoryHandler) for each in handlers)
    own = [each for each in handlers if is_kept and isinstance(each, TerminalHandler)]
    return own[0] if own else TerminalHandler()


def _take_kept() -> list[logging.LogRecord]:
    handlers = logging.getLogger(LOGGERS[0]).handlers
    return [rec for each in handlers if isinstance(each, MemoryHandler) for rec in each.buffer]


class TerminalHandler(logging.Handler):
    """Prints messages above the progress bars; those on a data set, opened again, only once."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(EscapingFormatter("[%(asctime)s] %(message)s", "%m/%d %H:%M:%S"))
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        message = record.getMessage()
        if record.name.startswith("occluded_reid.data"):
            if message in self._shown:
                return
            self._shown.add(message)
        text = self.format(record)
        if record.levelno >= logging.WARNING:
            text = text.replace("] ", f"] {record.levelname} ", 1)
        try:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
        except OSError:  # a closed pipe must not end the run
            self.handleError(record)
