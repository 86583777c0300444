"""CodeGeeX2-6B: ChatGLM2-6B trained further on code."""
