"""Training and evaluation on fast-reid's engine."""

from occluded_reid.engine.launch import launch
from occluded_reid.engine.setup import argument_parser, config_of_run, prepare_run
from occluded_reid.engine.trainer import Trainer

__all__ = ["Trainer", "argument_parser", "config_of_run", "launch", "prepare_run"]
