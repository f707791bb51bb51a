"""Will a model run on a GPU: its parameters, KV cache and the engine's overhead against what is free."""
