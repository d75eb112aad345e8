"""Searches that run for hours and find what kills, hangs or fills; none of them is part of ``make test``."""
