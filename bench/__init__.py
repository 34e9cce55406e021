"""Measurements behind every figure in README.md and docs/figures.md, each with its rival in the same run."""
