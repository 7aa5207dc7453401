#!/usr/bin/env python
"""See occluded_reid/commands/compare.py."""

import sys

from occluded_reid.commands.compare import command

if __name__ == "__main__":
    sys.exit(command())
