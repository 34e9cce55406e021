"""Launchers: start a training job and act on its exit code."""
