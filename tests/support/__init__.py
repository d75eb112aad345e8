"""Helpers of the tests that are no tests: the distribution's kernels, and modules built against them."""
