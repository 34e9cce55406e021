"""Schedule, step, validation, loop, resume, and how an attempt is put together."""
