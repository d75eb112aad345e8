"""Checks of what is typed, before any work starts; wrong values are wrong usage (status 2)."""

from __future__ import annotations

import math

import click

__all__ = ["seconds"]


def seconds(_ctx: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    """A positive, finite number of seconds."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise click.BadParameter(f"{value} is not a positive number of seconds")
    return value
