"""ChatGLM2-6B, also with a context of 32k."""
