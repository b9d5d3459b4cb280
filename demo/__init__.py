"""The demo: a real embedding model behind HTTP."""
