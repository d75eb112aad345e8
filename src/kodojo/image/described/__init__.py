"""Kernels that are not there, only described: by headers packages, build trees, ``Module.symvers``."""
