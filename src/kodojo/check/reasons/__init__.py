"""The pages about the reasons for which kernels refuse modules: one Markdown file for each slug, beside this one."""

from __future__ import annotations

from importlib.resources import files

from kodojo.check.explain.nearest import nearest_word
from kodojo.errors import InputError
from kodojo.loader.slugs import SLUGS

__all__ = ["page"]


def page(slug: str) -> str:
    """The page about a reason, in Markdown.

    :raises InputError: there is no reason of that name.
    """
    if slug not in SLUGS:
        meant = nearest_word(slug, SLUGS)
        raise InputError(
            f"{slug}: neither a file nor a reason for which kernels refuse modules",
            hint=f"is {meant} meant?" if meant else "a verdict names its reason in parentheses",
        )
    return files(__name__).joinpath(f"{slug}.md").read_text("utf-8")
