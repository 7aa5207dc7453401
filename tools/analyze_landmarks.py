#!/usr/bin/env python
"""See occluded_reid/commands/analyze_landmarks.py."""

import sys

from occluded_reid.commands.analyze_landmarks import command

if __name__ == "__main__":
    sys.exit(command())
