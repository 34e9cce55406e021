"""Stop requests: signals that ask for a stop and the time that is left."""
