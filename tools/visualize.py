#!/usr/bin/env python
"""See occluded_reid/commands/visualize.py."""

import sys

from occluded_reid.commands.visualize import command

if __name__ == "__main__":
    sys.exit(command())
