#!/usr/bin/env python
"""See occluded_reid/commands/import_checkpoint.py."""

import sys

from occluded_reid.commands.import_checkpoint import command

if __name__ == "__main__":
    sys.exit(command())
