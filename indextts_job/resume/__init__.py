"""Selects the checkpoint that an attempt resumes from, and checks that it may."""
