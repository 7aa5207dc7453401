"""Training and evaluation on fast-reid's engine."""

from occluded_reid import compat

compat.apply()

from occluded_reid.engine.defaults import argument_parser, config_of_run, prepare_run  # noqa: E402
from occluded_reid.engine.launch import launch  # noqa: E402
from occluded_reid.engine.trainer import Trainer  # noqa: E402

__all__ = ["Trainer", "argument_parser", "config_of_run", "launch", "prepare_run"]
