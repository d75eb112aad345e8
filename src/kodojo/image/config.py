"""The configuration that a kernel was built with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Config", "config_lines", "embedded_config", "parse_config"]

_LINE = re.compile(r"^(CONFIG_\w+)=(.*)", re.ASCII | re.MULTILINE)
_SETTING = re.compile(rb"^(CONFIG_\w+)=(.*?)\r?$", re.MULTILINE)
_LIMIT = 16 << 20


class Config(Mapping[str, str]):
    """``CONFIG_X`` to ``y``, ``m`` or a value (strings without quotes); what is not set is absent."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)
        self._enabled: dict[str, bool] = {}

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<Config, {len(self)} options>"

    def enabled(self, name: str) -> bool:
        """Tell whether an option is ``y`` or ``m``; ``CONFIG_`` may be left out."""
        if name not in self._enabled:  # some are asked for again for every symbol of a module
            full = name if name.startswith("CONFIG_") else f"CONFIG_{name}"
            self._enabled[name] = self._values.get(full) in ("y", "m")
        return self._enabled[name]


def parse_config(text: str) -> Config:
    """Parse a ``.config``; lines that are no settings are ignored, the last of two settings wins."""
    values = dict(_LINE.findall(text))
    # Nearly all are y or m: looking into the others only takes half the time.
    return Config({name: value if value in ("y", "m") else _unquoted(value) for name, value in values.items()})


def config_lines(data: bytes) -> bytes:
    """The lines of a ``.config`` that set something, and no others."""
    return b"".join(b"%s=%s\n" % setting for setting in _SETTING.findall(data))


def _unquoted(value: str) -> str:
    value = value.removesuffix("\r")
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value


def embedded_config(vmlinux: Any, name: str) -> Config | None:
    """Return the configuration that a kernel with ``CONFIG_IKCONFIG`` carries (kernel/configs.c), else None.

    :param vmlinux: bytes or a mapped file.
    :raises ImageError: it is there and damaged.
    """
    from kodojo.image.compression import decompress  # noqa: PLC0415

    start = vmlinux.find(b"IKCFG_ST\x1f\x8b")
    if start < 0:
        return None
    end = vmlinux.find(b"IKCFG_ED", start)
    data = bytes(vmlinux[start + 8 : end if end > 0 else start + _LIMIT])
    return parse_config(
        decompress(data, "gzip", _LIMIT, f"{name} (embedded configuration)").decode("utf-8", "replace")
    )
