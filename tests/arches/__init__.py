"""Modules of Debian's other architectures against their own kernels, without running anything.

Hundreds of megabytes are downloaded, so this is no part of the test suite: ``python -m tests.arches``.
"""
