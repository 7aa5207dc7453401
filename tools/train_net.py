#!/usr/bin/env python
"""See occluded_reid/commands/train_net.py."""

import sys

from occluded_reid.commands.train_net import command

if __name__ == "__main__":
    sys.exit(command())
