#!/usr/bin/env python
"""See occluded_reid/commands/make_occluders.py."""

import sys

from occluded_reid.commands.make_occluders import command

if __name__ == "__main__":
    sys.exit(command())
