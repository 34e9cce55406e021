"""The old trainer's command line."""
