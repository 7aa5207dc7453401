#!/usr/bin/env python
"""See occluded_reid/commands/check_dataset.py."""

import sys

from occluded_reid.commands.check_dataset import command

if __name__ == "__main__":
    sys.exit(command())
