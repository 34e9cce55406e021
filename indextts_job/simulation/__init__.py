"""Simulate what a run would cost on machines that may be taken away."""
