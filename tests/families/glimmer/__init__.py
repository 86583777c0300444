"""Glimmer: an invented family that is as unlike ChatGLM-6B as ChatGLM2 is, to prove the seam between families.

    embedding -> L x [ x + attention(norm(x));  x + mlp(norm(x)) ] -> norm -> head (untied)

RMSNorm, SwiGLU, grouped key and value heads, rotary on half of each head interleaved in pairs, causal, several stop
ids, a byte-level vocabulary in a JSON file, other tensor names and other keys in config.json.
"""
