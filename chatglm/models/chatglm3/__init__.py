"""ChatGLM3-6B: chat, base, and contexts of 32k and 128k."""
