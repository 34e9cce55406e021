"""Checks to run before a training is paid for: each finding says what was found and what to do about it."""
