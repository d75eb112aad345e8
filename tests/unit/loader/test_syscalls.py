from __future__ import annotations

import lzma

import pytest

from kodojo.errors import LoadError, UnloadError
from kodojo.loader.steps import Steps
from kodojo.loader.syscalls import sys_delete_module, sys_finit_module, sys_init_module
from kodojo.loader.target import ModuleState
from tests.support.loading import SpyTarget, export, finish, load, loadable, module

O_TRUNC = 0x200
CAP_SYS_MODULE = 16


def init_refused(target: SpyTarget, umod: int, length: int) -> LoadError:
    with pytest.raises(LoadError) as caught:
        sys_init_module(target, umod, length, target.user_copy(b"\0"))
    assert not target.allocations
    return caught.value


def finit_refused(target: SpyTarget, fd: int, flags: int = 0) -> LoadError:
    with pytest.raises(LoadError) as caught:
        sys_finit_module(target, fd, target.user_copy(b"\0"), flags)
    assert not target.allocations
    return caught.value


@pytest.mark.parametrize("capabilities", [frozenset(), frozenset({CAP_SYS_MODULE - 1})])
def test_only_with_the_capability(capabilities):
    """Without CAP_SYS_MODULE nothing is looked at, not even pointers and flags."""
    target = SpyTarget(capabilities=capabilities)
    assert (init_refused(target, 0, 0).errno, finit_refused(target, -1, 99).errno) == (1, 1)
    with pytest.raises(UnloadError) as caught:
        sys_delete_module(target, "", 0)
    assert caught.value.errno == 1
    assert target.log == []


def test_after_modules_were_disabled():
    """kernel.modules_disabled forbids loading and removing to everybody."""
    target = SpyTarget(capabilities=frozenset({CAP_SYS_MODULE}))
    target.modules_disabled = lambda: True
    assert init_refused(target, 0, 0).slug == "modules-disabled"
    with pytest.raises(UnloadError):
        sys_delete_module(target, "paper", 0)


def test_image_shorter_than_a_header():
    """init_module refuses less than an ELF header without a line, and without reading it."""
    target = SpyTarget()
    error = init_refused(target, 0, 63)
    assert (error.errno, error.step, target.log) == (8, "copy_module_from_user", [])


def test_unreadable_image():
    """An image that is not all readable is EFAULT; one that cannot fit into memory is ENOMEM before that."""
    target = SpyTarget()
    address = target.user_copy(bytes(100))
    assert init_refused(target, address, 101).errno == 14
    assert init_refused(target, 0, 64).errno == 14
    assert init_refused(target, address, 1 << 63).errno == 12


def test_length_decides():
    """Only as many bytes as the caller claims are the image."""
    data = module().build()
    target = SpyTarget()
    address = target.user_copy(data + b"junk")
    assert sys_init_module(target, address, len(data), target.user_copy(b"\0")).name == "paper"


def test_finit_module():
    """The file behind a descriptor is loaded; the first steps say so."""
    target, steps = SpyTarget(), Steps()
    data = module().build()
    sys_finit_module(target, target.open_file(data), target.user_copy(b"\0"), 0, steps)
    assert [step.name for step in steps[:3]] == ["may_init_module", "kernel_read_file", "module_sig_check"]
    assert steps[1].facts["size"] == len(data)


def test_unknown_flags():
    """Flags are looked at before the descriptor."""
    assert finit_refused(SpyTarget(), -1, 8).slug == "unknown-flags"


def test_bad_files():
    """Descriptors that are not open, and empty files."""
    target = SpyTarget()
    assert finit_refused(target, 77).errno == 9
    assert finit_refused(target, target.open_file(b"")).errno == 22


def test_short_file():
    """finit_module leaves it to the ELF checks to refuse a short file."""
    target = SpyTarget()
    assert finit_refused(target, target.open_file(b"0123456789")).step == "elf_validity_check"
    assert target.lines == [(3, "Invalid ELF header len 10")]


def test_compressed_file_in_a_kernel_that_cannot():
    """Flag 4 needs CONFIG_MODULE_DECOMPRESS."""
    target = SpyTarget()
    assert finit_refused(target, target.open_file(lzma.compress(module().build())), 4).errno == 95


def test_compressed_file():
    """A kernel built for xz takes xz, if it is told so."""
    options = {"MODULE_DECOMPRESS": "y", "MODULE_COMPRESS_XZ": "y"}
    data = lzma.compress(module(late=True).build(), check=lzma.CHECK_CRC32)
    target = SpyTarget(late=True, **options)
    assert sys_finit_module(target, target.open_file(data), target.user_copy(b"\0"), 4).name == "paper"
    target = SpyTarget(late=True, **options)
    assert finit_refused(target, target.open_file(data)).step == "elf_validity_check"
    assert finit_refused(target, target.open_file(module(late=True).build()), 4).errno == 22
    assert target.lines[-1] == (3, "not an xz compressed module")
    assert finit_refused(target, target.open_file(data[:-9]), 4).errno == 22
    error = finit_refused(target, target.open_file(lzma.compress(module(late=True).build())), 4)  # with CRC64
    assert (error.errno, error.slug, error.step) == (22, "bad-compression", "module_decompress")
    assert target.lines[-1] == (3, "decompression failed with status 6")


# -- delete_module ------------------------------------------------------------------------------------


def delete_refused(target: SpyTarget, name: str | bytes = "paper", flags: int = 0) -> int:
    before = list(target.modules())
    with pytest.raises(UnloadError) as caught:
        sys_delete_module(target, name, flags)
    assert target.modules() == before
    return caught.value.errno


@pytest.mark.parametrize("name", ["", "nothing", "n" * 56, b"\0paper", "PAPER"])
def test_names_of_no_module(name):
    """A name that no module has, or can have, is ENOENT."""
    target = SpyTarget(init=0)
    load(target, module())
    assert delete_refused(target, name) == 2


@pytest.mark.parametrize("name", ["paper", b"paper", b"paper\0rest"])
def test_delete(name):
    """A module goes: GOING, exit, everybody is told, then its parts in the kernel's order."""
    target = SpyTarget(init=0)
    load(target, module())
    target.calls.clear()
    sys_delete_module(target, name, 0)
    assert target.calls == [
        "set_state GOING", "call_exit", "notify GOING", "klp_module_going", "ftrace_release_mod",
        "wait_for_async", "record_unload", "mod_sysfs_teardown", "set_state UNFORMED", "dynamic_debug_remove",
        "module_arch_cleanup", "module_unload_free", "destroy_params", "module_bug_cleanup", "unlink_module",
        "module_memfree", "kfree", "module_memfree", "wake_module_wq",
    ]  # fmt: skip
    assert not target.allocations
    assert not target.modules()


def test_delete_a_module_in_use():
    """A module that others use stays, force or not."""
    target = SpyTarget(init=0)
    writer = loadable(name="provider")
    export(writer, "provided", crc=None)
    load(target, finish(writer))
    user = loadable()
    user.symbol("provided")
    load(target, finish(user))
    assert delete_refused(target, "provider", O_TRUNC) == 11
    sys_delete_module(target, "paper", 0)
    sys_delete_module(target, "provider", 0)
    assert not target.modules()


def test_delete_a_module_that_is_not_live():
    """A module that is loading or dying is EBUSY; one that is UNFORMED does not exist."""
    target = SpyTarget()
    mod = load(target, module())
    assert delete_refused(target) == 16
    mod.state = ModuleState.UNFORMED
    assert delete_refused(target) == 2


@pytest.mark.parametrize(("force", "removed"), [("y", True), ("n", False)])
def test_delete_without_exit(force, removed):
    """A module with init and without exit is permanent, unless the kernel can be forced."""
    target = SpyTarget(init=0, MODULE_FORCE_UNLOAD=force)
    load(target, finish(loadable(has_exit=False)))
    assert delete_refused(target) == 16
    assert target.taints == 0
    if removed:
        sys_delete_module(target, "paper", O_TRUNC)
        assert "call_exit" not in target.calls
        assert target.taints == 1 << 3
        assert target.lines == [(4, "Disabling lock debugging due to kernel taint")]
    else:
        assert delete_refused(target, flags=O_TRUNC) == 16


def test_delete_a_referenced_module():
    """Somebody holds a reference: EAGAIN; by force it goes all the same."""
    target = SpyTarget(init=0)
    load(target, module())
    target.try_release_module_ref = lambda mod: 2
    assert delete_refused(target) == 11
    sys_delete_module(target, "paper", O_TRUNC)
    assert target.taints == 1 << 3
    assert not target.modules()


def test_delete_without_init_and_exit():
    """A module without functions can be removed."""
    target = SpyTarget(init=0)
    writer = loadable(has_exit=False)
    load(target, writer)
    sys_delete_module(target, "paper", 0)
    assert "call_exit" not in target.calls
