"""A Hub for tests: an HTTP server on the loopback address to which the unpatched `huggingface_hub` client talks."""
