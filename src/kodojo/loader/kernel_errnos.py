"""Errnos that the kernel uses inside (include/linux/errno.h): user space has no names for them."""

from __future__ import annotations

__all__ = ["KERNEL_ERRNOS", "errno_meaning"]

KERNEL_ERRNOS: dict[int, tuple[str, str]] = {
    512: ("ERESTARTSYS", "a signal arrived, and the system call is to be started again"),
    513: ("ERESTARTNOINTR", "the system call is to be started again"),
    514: ("ERESTARTNOHAND", "the system call is to be started again if no handler took the signal"),
    515: ("ENOIOCTLCMD", "there is no such ioctl"),
    516: ("ERESTART_RESTARTBLOCK", "the system call is to be started again by restart_syscall()"),
    517: ("EPROBE_DEFER", "a GPIO, clock, supply or other resource that it needs has no driver yet; try again later"),
    518: ("EOPENSTALE", "the file handle that was opened is stale"),
    519: ("ENOPARAM", "there is no such mount option"),
    521: ("EBADHANDLE", "the NFS file handle is illegal"),
    522: ("ENOTSYNC", "the update is not synchronized"),
    523: ("EBADCOOKIE", "the cookie is stale"),
    524: ("ENOTSUPP", "the operation is not supported; EOPNOTSUPP is the error that user space knows"),
    525: ("ETOOSMALL", "the buffer or request is too small"),
    526: ("ESERVERFAULT", "an error of the server that has no other name"),
    527: ("EBADTYPE", "the type is not supported by the server"),
    528: ("EJUKEBOX", "the request was begun and will take long"),
    529: ("EIOCBQUEUED", "the request is queued, and its answer comes later"),
    530: ("ERECALLCONFLICT", "it conflicts with a delegation that was recalled"),
    531: ("ENOGRACE", "the NFS server grants no time to reclaim locks"),
}
"""By number: the name, and its meaning."""


def errno_meaning(errno: int) -> str:
    """`` (EPROBE_DEFER: ...)`` for what ``strerror`` has no text for, else nothing."""
    if errno not in KERNEL_ERRNOS:
        return ""
    name, meaning = KERNEL_ERRNOS[errno]
    return f" ({name}: {meaning})"
