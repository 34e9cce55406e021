"""Kubernetes: the manifest of a job, and a cluster that runs it."""
