"""Parts that networks are made of: rotary positions, attention, KV cache, prefix encoder."""
