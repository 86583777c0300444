"""ChatGLM-6B, first release and v1.1: configuration, network, tokenizer, chat template."""
