#!/usr/bin/env python
"""See occluded_reid/commands/demo.py."""

import sys

from occluded_reid.commands.demo import command

if __name__ == "__main__":
    sys.exit(command())
