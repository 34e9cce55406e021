"""Stop requests: signals and notices that ask for a stop, and the time that is left."""
