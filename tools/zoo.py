#!/usr/bin/env python
"""See occluded_reid/commands/zoo.py."""

import sys

from occluded_reid.commands.zoo import command

if __name__ == "__main__":
    sys.exit(command())
