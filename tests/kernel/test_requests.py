"""Modules that are asked for by tasks which have no user space: kernel threads, work queues, many at once."""

from __future__ import annotations

import pytest

from kodojo.errors import LoadError
from tests.kernel.looking import listening
from tests.support.crypto import INSTANCES, templates

pytestmark = pytest.mark.kernel

NOT_FOUND = 1 << 8  # modprobe's exit status 1, as wait() tells it
ENOENT, EAGAIN, EEXIST, EINVAL = 2, 11, 17, 22


def ask(kernel, built, *arguments: str) -> list[int]:
    """What each task of kd_threads is answered; the module is gone afterwards."""
    question = "get_fs_type=" if "fs=1" in arguments else "request_module="
    with listening(kernel) as said:
        kernel.insmod(built["kd_threads"], *arguments)
    kernel.rmmod("kd_threads")
    assert kernel.oopses == ()
    return [int(line.partition("=")[2]) for line in said.by("kd_threads") if line.startswith(question)]


def names(kernel) -> set[str]:
    return {module.name for module in kernel.modules}


@pytest.mark.parametrize("task", ["threads=1", "threads=0 work=1"])
@pytest.mark.parametrize("name", ["dummy", "libcrc32c", "kd-nothing"])
def test_a_task_without_user_memory(kernel, built, task, name):
    """A kernel thread or a worker asks: what is found is loaded, with its dependencies, packed or not."""
    found = name != "kd-nothing"
    assert ask(kernel, built, task, f"name={name}") == [0 if found else NOT_FOUND]
    assert names(kernel) >= ({name} if found else set())


def test_many_ask_for_one(kernel, built):
    """Ten threads and ten workers ask for one module: it is loaded once, and all are told that it is there."""
    assert ask(kernel, built, "threads=10", "work=10", "name=fs-vfat") == [0] * 20
    loaded = [module.name for module in kernel.modules]
    assert sorted(loaded) == ["fat", "vfat"]
    assert all(module.state == "Live" for module in kernel.modules)


@pytest.mark.parametrize("threads", [50, 70])
def test_the_limit(kernel, built, threads):
    """Fifty modprobes may run at once; who comes later waits, and is answered, too."""
    assert ask(kernel, built, f"threads={threads}", "name=kd-nothing") == [NOT_FOUND] * threads


def test_two_loads_of_one_name(kernel, built):
    """Two tasks load one module: the second waits for the first one's init, and finds that it is there."""
    image = built["kd_timer"].read_bytes()
    answers = []

    def answer(_name: str) -> int:
        answers.append(kernel.init_module(image, "wait=1"))
        return 0

    kernel.requests.answer = answer
    assert ask(kernel, built, "threads=2") == [0, 0]
    assert sorted(answers) == [-EEXIST, 0]
    kernel.rmmod("kd_timer")


def test_two_loads_of_one_file(kernel, built):
    """Two tasks load one file: where the kernel joins them, both get the first one's answer; else as above."""
    answers = []

    def answer(_name: str) -> int:
        with built["kd_timer"].open("rb") as file:
            answers.append(kernel.finit_module(file.fileno(), "wait=1"))
        return 0

    kernel.requests.answer = answer
    assert ask(kernel, built, "threads=2") == [0, 0]
    assert sorted(answers) == ([0, 0] if kernel.image.btf.has("idempotent") else [-EEXIST, 0])
    kernel.rmmod("kd_timer")


def test_independent_loads_do_not_wait(kernel, built):
    """A module whose init takes long does not keep another task from loading another one meanwhile."""
    order = []

    def answer(name: str) -> int:
        if name == "kd0":
            status = kernel.init_module(built["kd_timer"].read_bytes(), "wait=1")
        else:
            status = kernel.init_module(built["kd_hello"].read_bytes())
        order.append(name)
        return 1 if status else 0

    kernel.requests.answer = answer
    assert ask(kernel, built, "threads=2", "name=kd", "numbered=1") == [0, 0]
    assert order == ["kd1", "kd0"]
    assert names(kernel) == {"kd_timer", "kd_hello"}


def test_rights_of_modprobe(kernel, built):
    """What a thread asks for is loaded with root's rights by a process of its own, of modprobe's name."""
    seen = []

    def answer(_name: str) -> int:
        seen.append((kernel.read_file("/proc/self/comm"), kernel.call("capable", 16) & 0xFF))
        return 3

    kernel.requests.answer = answer
    assert ask(kernel, built) == [3 << 8]
    assert seen == [(b"modprobe\n", 1)]


def test_an_error_in_modprobe(kernel, built):
    """What goes wrong in Python is modprobe's failure for the guest, and raised when the operation is over."""

    def answer(_name: str) -> int:
        raise ValueError("not today")

    kernel.requests.answer = answer
    with pytest.raises(ValueError, match="not today"):
        kernel.insmod(built["kd_threads"])
    assert names(kernel) == {"kd_threads"}
    kernel.rmmod("kd_threads")


def test_modprobe_refused(kernel, built):
    """A module that the kernel refuses is modprobe's exit status 1 for who asked."""
    refusals = []

    def answer(_name: str) -> int:
        try:
            kernel.insmod(built["kd_unknown"])
        except LoadError as error:
            refusals.append(error.errno)
            return 1
        return 0

    kernel.requests.answer = answer
    assert ask(kernel, built, "threads=3") == [NOT_FOUND] * 3
    assert refusals == [2] * 3


@pytest.mark.parametrize("threads", [1, 4])
def test_file_systems(kernel, built, threads):
    """Threads ask for a file system whose modules ask for an algorithm in their turn (kmod.sh, 0003 and 0006)."""
    assert ask(kernel, built, "fs=1", "name=xfs", f"threads={threads}") == [0] * threads
    assert names(kernel) >= {"xfs", "libcrc32c"}
    assert ask(kernel, built, "fs=1", "name=kd-nothing") == [-EINVAL]


def test_programs_of_a_bare_system_call(kernel, built):
    """Programs of other tasks wait for nothing but their own calls, whatever it was that made them start."""
    kernel.limit(5)
    kernel.requests.answer = lambda _name: 0 if kernel.read_file("/proc/version") else 1
    image = built["kd_threads"].read_bytes()
    with kernel.user.memory(image) as umod, kernel.user.string(b"threads=3") as uargs:
        assert kernel.user.syscall("init_module", umod, len(image), uargs) == 0


def test_rxrpc(kernel):
    """A module of the tree that asks for an algorithm in its init loads, and is removed."""
    kernel.modprobe("rxrpc")
    kernel.rmmod("rxrpc")
    assert kernel.oopses == ()


def test_tcrypt(kernel):
    """The kernel's tests of its algorithms ask for all of them; in the end the module refuses to stay."""
    with pytest.raises(LoadError) as refused:
        kernel.modprobe("tcrypt", "mode=10")
    assert refused.value.errno in {EAGAIN, ENOENT}  # an algorithm that 6.1 knows is not in Debian's; so says QEMU
    assert "tcrypt" not in names(kernel)
    assert "lrw" in names(kernel)  # of those that are asked for, what no processor has instructions for
    assert kernel.oopses == ()


def test_every_template_is_asked_for(image):
    """There is an instance of every template of the tree; `make oracle` asks for all of them, and compares."""
    assert set(templates(image)) <= set(INSTANCES)


TEMPLATES = ("ccm", "gcm", "pcbc", "xts", "cmac", "authenc", "adiantum")


@pytest.mark.parametrize("template", TEMPLATES)
def test_crypto_manager(kernel, built, template):
    """The crypto manager asks for templates from a thread of its own: algorithms made of them are had."""
    kind, name = INSTANCES[template]
    with listening(kernel) as said:
        kernel.insmod(built["kd_crypto"], f"kind={kind}", f"name={name}")
    *_, line = said.by("kd_crypto")
    assert line.startswith(f"{kind} {name}: {template}")
    assert kernel.oopses == ()
