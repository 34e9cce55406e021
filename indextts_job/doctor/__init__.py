"""Checks that people run before they spend money: each finding says what was found, and what to do about it."""
