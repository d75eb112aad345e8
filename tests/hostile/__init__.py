"""What strangers send that means harm: each kind of failure that was found once, as a test of its kind.

Limits are lowered in one place (:mod:`kodojo.image.bounds`) where that proves the same; what is large is a stream, or
a file with holes. ``in_time`` ends a test whose code would never come back.
"""
