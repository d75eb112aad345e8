import gzip

import pytest

from kodojo.errors import ImageError
from kodojo.image.config import embedded_config, parse_config

TEXT = """# a comment
CONFIG_SMP=y
CONFIG_DUMMY=m
# CONFIG_OFF is not set
CONFIG_HZ=250\r
CONFIG_NAME="a \\"b\\" c"
CONFIG_EMPTY=""
"""


def test_values():
    """Options have their value, strings lose their quotes, what is not set is absent."""
    config = parse_config(TEXT)
    assert dict(config) == {
        "CONFIG_SMP": "y",
        "CONFIG_DUMMY": "m",
        "CONFIG_HZ": "250",
        "CONFIG_NAME": 'a "b" c',
        "CONFIG_EMPTY": "",
    }
    assert "CONFIG_OFF" not in config


def test_enabled():
    """An option is enabled if it is y or m, with or without its prefix."""
    config = parse_config(TEXT)
    assert config.enabled("SMP")
    assert config.enabled("CONFIG_DUMMY")
    assert not any(config.enabled(name) for name in ("OFF", "HZ", "NAME", "UNKNOWN"))


def test_embedded():
    """The configuration inside a kernel is found and read; a kernel without gives None."""
    inside = b"xx" * 99 + b"IKCFG_ST" + gzip.compress(TEXT.encode()) + b"IKCFG_ED" + bytes(99)
    assert dict(embedded_config(inside, "vmlinux")) == dict(parse_config(TEXT))
    assert embedded_config(b"IKCFG_ST of IKCFG_ED" + bytes(99), "vmlinux") is None


def test_embedded_damage():
    """A damaged embedded configuration is an error that names the kernel."""
    with pytest.raises(ImageError, match=r"vmlinux \(embedded configuration\)"):
        embedded_config(b"IKCFG_ST" + gzip.compress(TEXT.encode())[:-9] + b"IKCFG_ED", "vmlinux")
