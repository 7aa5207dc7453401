"""The commands: ``occluded-reid COMMAND``, and ``tools/*.py`` in a checkout."""
