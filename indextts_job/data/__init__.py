"""Datasets: manifests, checks, shards, the order of samples, packing, and prefetching."""
