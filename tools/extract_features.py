#!/usr/bin/env python
"""See occluded_reid/commands/extract_features.py."""

import sys

from occluded_reid.commands.extract_features import command

if __name__ == "__main__":
    sys.exit(command())
