"""request_module() from inside the guest: what it comes to, under both loaders and for every kind of caller."""

from __future__ import annotations

import pytest

from kodojo.errors import MachineHang
from tests.kernel.callers import Calls
from tests.kernel.looking import listening

pytestmark = pytest.mark.kernel

ENOENT, ETIME = 2, 62
NOT_FOUND = 1 << 8  # modprobe's exit status 1, as wait() tells it
CAP_SYS_MODULE = 16
WAIT = 1


def names(kernel) -> set[str]:
    return {module.name for module in kernel.modules}


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("name", ["kd-nothing", "fs-vfat", ""])
def test_request_in_init(both, built, name, answered):
    """A module's init asks for another one: found, not found, there is no modprobe, nothing asked for."""
    for kernel in both.kernels:
        kernel.answers_requests = answered
    image = built["kd_request"].read_bytes()
    assert both(lambda calls: calls.init(image, f"name={name}")) == 0
    found = answered and name == "fs-vfat"
    status = 0 if found else NOT_FOUND if answered else -ENOENT
    said = [(6, f"kd_request: request_module={status}")] if name else []
    assert [line for line in both.ours.log if "request_module" in line[1]] == said
    assert names(both.ours.kernel) - {"kd_request"} == ({"vfat", "fat"} if found else set())


def test_longest_name(both, built):
    """A name is what fits into the kernel's buffer of 56 bytes."""
    image = built["kd_request"].read_bytes()
    for length in (55, 56, 57):
        assert both(lambda calls, length=length: calls.init(image, f"name={'n' * length}")) == 0
        assert both(lambda calls: calls.delete("kd_request")) == 0


def test_requester_lends_no_rights(kernel):
    """Whoever makes the kernel ask for a module, it is root's modprobe that loads it."""
    with kernel.as_user(1000, 1000, ()):
        assert kernel.call("__request_module", WAIT, "fat") == 0
        assert kernel.init_module(b"") < 0
    assert names(kernel) == {"fat"}


def test_bounded_helpers(kernel):
    """Programs that the kernel starts may be denied the right to load modules."""
    without = 0xFFFFFFFF & ~(1 << CAP_SYS_MODULE)
    kernel.write_file("/proc/sys/kernel/usermodehelper/bset", b"%d 511" % without)
    assert kernel.call("__request_module", WAIT, "fat") == NOT_FOUND
    assert names(kernel) == set()
    assert kernel.call("capable", CAP_SYS_MODULE) & 0xFF == 1


def test_name_of_the_task(kernel, built):
    """While modprobe loads, the task bears its name; afterwards its own."""
    seen = []

    def answer(_name: str) -> int:
        seen.extend(kernel.read_file(f"/proc/{task}/comm") for task in ("self", 1))
        return 0

    kernel.requests.answer = answer
    kernel.insmod(built["kd_request"])
    assert seen == [b"modprobe\n", b"insmod\n"]
    assert kernel.read_file("/proc/self/comm") == b"init\n"


@pytest.mark.parametrize(
    ("path", "status", "loaded"),
    [
        (b"/sbin/modprobe", 0, {"fat"}),
        (b"/usr/sbin/modprobe", 0, {"fat"}),
        (b"/bin/false", -ENOENT, set()),
        (b"", -ENOENT, set()),
    ],
)
def test_path_of_modprobe(kernel, path, status, loaded):
    """The sysctl that says where modprobe is switches it off where it is not."""
    kernel.write_file("/proc/sys/kernel/modprobe", path + b"\n")
    assert kernel.call("__request_module", WAIT, "fat") == status
    assert names(kernel) == loaded


def test_suspended_kernel(kernel):
    """While the kernel starts no programs, nothing is answered."""
    kernel.memory.put(kernel.image.kallsyms.address("usermodehelper_disabled"), 4, 1)
    assert kernel.call("__request_module", WAIT, "fat") == -16
    assert names(kernel) == set()


@pytest.mark.x86_64("elsewhere kallsyms lists no data")
def test_fifty_at_once(kernel):
    """When fifty modprobes are busy for five seconds the kernel gives up, in its own words."""
    counter = kernel.image.kallsyms.address("kmod_concurrent_max")
    if not kernel.image.has_text(b"kmod_concurrent_max (%u) close to 0"):
        counter += kernel.image.btf.struct("semaphore").offset("count")
    assert kernel.memory.u32(counter) == 50
    kernel.memory.put(counter, 4, 0)
    before = kernel.time
    with listening(kernel) as said:
        assert kernel.call("__request_module", WAIT, "fat") == -ETIME
    assert said.lines[-1] == (
        "request_module: modprobe fat cannot be processed, kmod busy with 50 threads for more than 5 seconds now"
    )
    assert kernel.time - before >= 5
    assert names(kernel) == set()


def copies(image: bytes, count: int) -> list[bytes]:
    """The module under other names."""
    return [image.replace(b"kd_request", b"kd_reque%02d" % number) for number in range(count)]


def test_requests_within_requests(both, built):
    """Each module's init asks for the next one, eight deep; the last is live first."""
    images = copies(built["kd_request"].read_bytes(), 8)

    def load(calls: Calls) -> int:
        def answer(name: str) -> int:
            number = int(name)
            return 1 if calls.init(images[number], f"name={number + 1}" if number < 7 else "name=") else 0

        calls.kernel.requests.answer = answer
        return calls.init(images[0], "name=1")

    assert both(load) == 0
    assert len(names(both.ours.kernel)) == 8
    assert [line[1] for line in both.ours.log if "request_module" in line[1]] == [
        f"kd_reque{number:02}: request_module=0" for number in range(6, -1, -1)
    ]


def test_request_for_itself(kernel, built):
    """A module whose init asks for itself waits for modprobe, which waits for it: for ever."""
    kernel.limit(1)
    image = built["kd_request"].read_bytes()
    kernel.requests.answer = lambda _name: 1 if kernel.init_module(image) else 0
    with pytest.raises(MachineHang):
        kernel.init_module(image)
