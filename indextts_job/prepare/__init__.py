"""From audio and transcripts to a sharded dataset, on any number of workers that may be killed at any instant."""
