"""Training and evaluation on fast-reid's engine."""

from occluded_reid import compat

compat.apply()

from occluded_reid.engine.defaults import argument_parser, load_run_config, prepare_run  # noqa: E402
from occluded_reid.engine.launch import launch  # noqa: E402
from occluded_reid.engine.trainer import Trainer  # noqa: E402

__all__ = ["Trainer", "argument_parser", "load_run_config", "launch", "prepare_run"]
