"""The old trainer's command line, configuration files and checkpoints."""
