"""A kernel as files: everything that can be known without executing it."""
