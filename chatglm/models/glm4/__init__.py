"""GLM-4-9B as published, in the native layouts of transformers, and GLM-4-0414."""
