"""Dataset manifests, the order of samples, packing, and prefetching."""
