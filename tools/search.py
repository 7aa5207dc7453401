#!/usr/bin/env python
"""Search a gallery of images; see gallery_search/command.py."""

import sys

from gallery_search.command import command

if __name__ == "__main__":
    sys.exit(command())
