"""The time-stamp counter of a booted kernel."""

import pytest

pytestmark = [pytest.mark.kernel, pytest.mark.arm64]

RDTSC, RDTSCP = b"\x0f\x31", b"\x0f\x01\xf9"
# MRS and MSR of system registers with op0 3, op1 3, CRn 14 (Arm ARM, C5.2): the generic timer's.
TIMER_MASK, TIMER = 0xFFDF_F000, 0xD51B_E000
# A function that does nothing but read the counter
READERS = {"x86_64": "trace_clock_x86_tsc", "aarch64": "arch_counter_get_cntvct"}


def reads_a_clock(kernel, address: int) -> bool:
    code = kernel.machine.cpu.read(address, 4)
    if kernel.image.architecture == "aarch64":
        return int.from_bytes(code, "little") & TIMER_MASK == TIMER
    return code.startswith((RDTSC, RDTSCP))


def test_every_trapped_address_reads_the_counter(kernel):
    """What is trapped after the boot is there, in the kernel's code as it is then."""
    cpu = kernel.machine.cpu
    start, end = (kernel.image.kallsyms.address(name) for name in ("_stext", "_etext"))
    assert cpu.time_stamp_sites
    for address in cpu.time_stamp_sites:
        assert start <= address < end
        assert reads_a_clock(kernel, address)


def test_code_that_the_kernel_patched_while_it_booted(kernel):
    """``rdtsc_ordered()`` was patched to read the counter behind a fence; that read is trapped, as arm64's is."""
    name = READERS[kernel.image.architecture]
    function = kernel.image.kallsyms.address(name)
    assert any(reads_a_clock(kernel, function + offset) for offset in range(64))
    values = [kernel.fork().call(name) for _ in range(2)]
    assert values[0] == values[1]
    assert 0 < values[0] <= most(kernel, 1000)


def most(kernel, blocks: int) -> int:
    """What the counter reads at most after so many more basic blocks."""
    cpu = kernel.machine.cpu
    return cpu.counter + blocks if kernel.image.architecture == "aarch64" else 8 * (cpu.blocks + blocks)


@pytest.mark.x86_64("elsewhere instructions have one length, so nothing else looks like one")
def test_only_instructions_are_trapped(kernel):
    """Bytes inside other instructions that only look like RDTSC are not trapped: each slows the machine down."""
    text = kernel.image.elf.section_data(".text")
    looks_like_it = bytes(text).count(RDTSC)
    assert 0 < len(kernel.machine.cpu.time_stamp_sites) < looks_like_it


@pytest.mark.parametrize("native", [False, True], ids=["ours", "native"])
def test_counter_read_by_a_module(kernel, built, native):
    """A module reads the machine's counter, not the host's: two machines in the same state read the same."""
    image = built["kd_tsc"].read_bytes()
    readings = []
    for twin in (kernel.fork(), kernel.fork()):
        if native:
            with twin.user.memory(image) as umod, twin.user.string(b"") as uargs:
                assert twin.user.syscall("init_module", umod, len(image), uargs) == 0
        else:
            twin.insmod(built["kd_tsc"])
        readings.append([int(one.text.split()[2]) for one in twin.log if one.text.startswith("kd_tsc reads ")])
    assert readings[0] == readings[1] == sorted(readings[0])
    assert len(set(readings[0])) == 3
    assert readings[0][-1] <= most(kernel, 10_000_000)


def test_sites_of_memory_that_is_used_again(kernel, built):
    """Loading and removing a module time and again does not add to what is trapped."""
    sites = []
    for _ in range(3):
        kernel.insmod(built["kd_tsc"])
        sites.append(len(kernel.machine.cpu.time_stamp_sites))
        kernel.rmmod("kd_tsc")
        kernel.sleep(1)  # memory is freed in the background
    assert sites[1] - sites[0] <= 1
    assert sites[2] == sites[1]
