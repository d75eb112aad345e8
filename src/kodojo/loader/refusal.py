"""How a stage of the loader says no."""

from __future__ import annotations

from kodojo.errors import DamageError, Detail, LoadError, Refusal
from kodojo.loader.target import Errno

__all__ = ["BUILD_AGAIN", "STRIPPED", "refuse", "would_damage"]

BUILD_AGAIN = "The file is damaged or was not made by the kernel's build system: build or fetch it again."
STRIPPED = "It was stripped too far: use the file as the build left it, or strip with --strip-debug only."


def refuse(name: str, errno: int, slug: str, why: str, hint: str, *details: Detail) -> LoadError:
    """The error to raise for a refusal; :func:`load_module` adds step and log to it.

    :param name: of the module or file.
    :param slug: one of :data:`kodojo.loader.slugs.SLUGS`.
    """
    refusal = Refusal(errno=errno, step="", slug=slug, why=why, hint=hint, details=details)
    return LoadError(f"{name}: {why}", refusal)


def would_damage(name: str, why: str) -> DamageError:
    """The error for a file that makes the kernel read or write outside it, which often ends in an oops."""
    refusal = Refusal(errno=Errno.ENOEXEC, step="", slug="would-damage-kernel", why=why, hint=BUILD_AGAIN)
    return DamageError(f"{name}: {why}", refusal)
