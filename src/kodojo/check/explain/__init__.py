"""What is behind a refusal: the specifics that the kernel does not print, and what to do about them."""

from __future__ import annotations

from kodojo.check.explain.case import Case
from kodojo.check.explain.explain import explain, notes

__all__ = ["Case", "explain", "notes"]
