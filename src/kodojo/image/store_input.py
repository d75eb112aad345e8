"""What is given to the store, judged before it is kept; what is refused is an InputError or an ImageError."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kodojo.errors import ImageError, InputError

if TYPE_CHECKING:
    from kodojo.image.image import Image

__all__ = ["check_overrides", "check_readable", "check_size"]

_LARGEST_KERNEL = 1 << 30  # bytes; a vmlinux with debug information has about 0.5 GiB


def check_overrides(modules: Path | None, config: Path | None) -> None:
    """What is given in place of a kernel's own tree or configuration has to be there."""
    if modules is not None and not modules.is_dir():
        raise InputError(f"{modules}: not a directory", hint="--modules takes a directory of modules")
    if config is not None and not config.is_file():
        raise InputError(f"{config}: not a file", hint="--config takes the kernel's configuration (config-RELEASE)")


def check_readable(image: Image) -> None:
    """Nothing that can neither be booted nor checked against comes into the store."""
    from kodojo.image.suites import BOOTS  # noqa: PLC0415  only for what is refused

    try:
        _ = image.describes
    except ImageError as error:
        error.hint = error.hint or (
            "kodojo can neither boot this kernel nor check modules against it; take another one, by its name: "
            f"kodojo kernel add {BOOTS}"
        )
        raise


def check_size(vmlinuz: Path) -> None:
    """A file that is larger than any kernel is none."""
    if vmlinuz.stat().st_size > _LARGEST_KERNEL:
        raise InputError(f"{vmlinuz}: too large for a kernel", hint="give a vmlinuz, a package or a directory")
