"""kodojo loads real Linux kernel modules into a real Linux kernel that runs inside this process.

::

    import kodojo

    image = kodojo.Image.open("6.1.0-56-amd64")
    kernel = kodojo.Kernel.boot(image)
    module = kernel.insmod("hello.ko", "whom=world")

The names below are all there is; they are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kodojo.errors import (
        CorruptError,
        DamagedMemoryError,
        DamageError,
        FaultReport,
        Frame,
        GuestOSError,
        ImageError,
        InputError,
        KodojoError,
        LoadError,
        LogRecord,
        MachineError,
        MachineFault,
        MachineHang,
        MissingInformationError,
        ModuleFileError,
        PackageError,
        Refusal,
        StoreError,
        UnloadError,
        UnmappedError,
        UnmodelledError,
    )
    from kodojo.image.image import Image
    from kodojo.kernel.kernel import Kernel
    from kodojo.kernel.module import Module
    from kodojo.loader.verdict import Verdict

__version__ = "0.1.0"

__all__ = [
    "CorruptError",
    "DamageError",
    "DamagedMemoryError",
    "FaultReport",
    "Frame",
    "GuestOSError",
    "Image",
    "ImageError",
    "InputError",
    "Kernel",
    "KodojoError",
    "LoadError",
    "LogRecord",
    "MachineError",
    "MachineFault",
    "MachineHang",
    "MissingInformationError",
    "Module",
    "ModuleFileError",
    "PackageError",
    "Refusal",
    "StoreError",
    "UnloadError",
    "UnmappedError",
    "UnmodelledError",
    "Verdict",
]

_HOMES = {
    "Image": "kodojo.image.image",
    "Kernel": "kodojo.kernel.kernel",
    "Module": "kodojo.kernel.module",
    "Verdict": "kodojo.loader.verdict",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'kodojo' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  only when something is used for the first time

    value = getattr(import_module(_HOMES.get(name, "kodojo.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
