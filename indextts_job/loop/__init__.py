"""The training loop of one attempt: steps, validations, saves, stops."""
