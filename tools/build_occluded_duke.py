#!/usr/bin/env python
"""See occluded_reid/commands/build_occluded_duke.py."""

import sys

from occluded_reid.commands.build_occluded_duke import command

if __name__ == "__main__":
    sys.exit(command())
