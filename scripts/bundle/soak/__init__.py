"""Use a running deployment for long, in every way at once, and see that it stays as it was: memory, descriptors, KV cache, latency, answers."""
