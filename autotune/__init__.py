"""autotune: search the memory/accuracy trade-off of training neural networks."""
