"""A small synthetic vmcore, shaped like a kernel's, with known contents."""
