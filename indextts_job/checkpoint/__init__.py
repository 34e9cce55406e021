"""Checkpoints of a run: format, commit, verified reading, fencing and retention."""
