"""Every module of a kernel's tree, loaded by our loader and natively: ``python -m tests.sweep`` (``make sweep``)."""
