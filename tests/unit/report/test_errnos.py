from __future__ import annotations

import errno
import sys

import pytest

from kodojo.report.errnos import errno_name


@pytest.mark.skipif(sys.platform != "linux", reason="other systems number errno otherwise")
def test_agrees_with_linux():
    """Every name that Linux has is the one of that number; where it has two, either will do."""
    for name, number in vars(errno).items():
        if name.startswith("E") and isinstance(number, int):
            assert getattr(errno, errno_name(number)) == number


def test_without_a_name():
    """No error has no name; a number without one stands for itself; the kernel's internal ones have theirs."""
    assert [errno_name(number) for number in (0, 41, 9999, 517)] == ["", "41", "9999", "EPROBE_DEFER"]
