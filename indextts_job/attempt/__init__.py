"""One attempt of a run, from its configuration to its exit code."""
