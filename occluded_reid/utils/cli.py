"""What the commands share: exit codes, one message for a user's mistake, and options.

Nothing here imports PyTorch, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable

from occluded_reid.utils.errors import EXIT_CODE, explain
from occluded_reid.utils.terminal import EscapedStream, escape


def run_command(main: Callable[[], object], *, debug: bool = False) -> int:
    """Run ``main``; turn a :class:`UserError` or a failure of the machine into one message.

    Returns the process's exit code: 0, 2 after such a message on stderr, 1 if all is done but what
    is left out, 130 after Ctrl-C, 141 if nobody reads the output any more (``| head``).
    ``debug`` raises the error instead. What is printed is escaped, see :class:`EscapedStream`.

    >>> run_command(lambda: None)
    0
    """
    os.environ["NO_COLOR"] = "1"  # escapes would show the codes of colors, too
    try:
        with contextlib.redirect_stdout(EscapedStream(sys.stdout)):
            main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to say
        return 128 + signal.SIGPIPE
    except (Exception, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        message = "" if interrupted else explain(error)
        if debug or not (interrupted or message):
            raise
        print("interrupted" if interrupted else escape(f"error: {message}"), file=sys.stderr)
        return 130 if interrupted else getattr(error, "exit_code", EXIT_CODE)
    return 0


def positive_int(text: str) -> int:
    """Parse an integer of at least 1, as ``type`` of an argparse option."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def count_processes(text: str) -> int:
    """Parse ``--num-gpus``, the number of processes on this machine."""
    if int(text) == 0:
        raise argparse.ArgumentTypeError("expected at least 1; MODEL.DEVICE cpu does without a GPU")
    return positive_int(text)


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows ``description``, a module's docstring, as it is laid out."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_common_options(
    parser: argparse.ArgumentParser, *, config_help: str = "a configuration file"
) -> None:
    """Add the options of every command that reads a configuration and weights."""
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help=config_help)
    trust_help = "read checkpoints that hold Python objects: such a file can run code"
    add("--trust-checkpoint", action="store_true", help=trust_help)
    add("--debug", action="store_true", help="show the traceback of an error")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration overrides")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add the common options, ``--weights``, and ``--also`` for a second configuration file."""
    weights_help = "a run's folder, a weights file, or the name of a model (occluded-reid zoo list)"
    also_help = "a configuration to read after --config-file, such as configs/test_all.yml"
    parser.add_argument("--weights", default="", metavar="RUN|FILE|NAME", help=weights_help)
    parser.add_argument("--also", action="append", default=[], metavar="FILE", help=also_help)
    add_common_options(parser)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add fast-reid's options for training and evaluation, and ours, to the common ones."""
    add = parser.add_argument
    add("--resume", action="store_true", help="continue the run in OUTPUT_DIR")
    overwrite_help = "move the run in OUTPUT_DIR aside and start a new one"
    add("--overwrite", action="store_true", help=overwrite_help)
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    dry_help = "one training and one evaluation step on generated images; no data set is needed"
    add("--dry-run", action="store_true", help=dry_help)
    gpus_help = "processes here, on CPUs with MODEL.DEVICE cpu (default: 1)"
    add("--num-gpus", type=count_processes, default=1, metavar="N", help=gpus_help)
    add("--num-machines", type=positive_int, default=1, metavar="N", help="machines (default: 1)")
    add("--machine-rank", type=int, default=0, metavar="R", help="this machine's rank (0)")
    add("--dist-url", default="auto", metavar="URL", help="where the processes meet (a free port)")
    add_config_options(parser)
