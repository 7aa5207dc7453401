#!/usr/bin/env python
"""See occluded_reid/commands/publish_model.py."""

import sys

from occluded_reid.commands.publish_model import command

if __name__ == "__main__":
    sys.exit(command())
