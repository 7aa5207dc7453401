#!/usr/bin/env python
"""See occluded_reid/commands/export_model.py."""

import sys

from occluded_reid.commands.export_model import command

if __name__ == "__main__":
    sys.exit(command())
