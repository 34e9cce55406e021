"""Measurements behind every figure in the README, each with its rival in the same run."""
