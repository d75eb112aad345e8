"""Guest code that is more than the engine's translator can hold, or that it has no answer to."""

from __future__ import annotations

import gc
import resource
import threading
from pathlib import Path

import pytest

from kodojo.errors import MachineError
from kodojo.machine import translation
from kodojo.machine.engine import Engine, Stop
from kodojo.machine.memory import Ram
from kodojo.machine.translation import TranslationLimit, find_counters, find_cpu, find_flushes
from tests.attack.blocks import FAMILIES, make_block
from tests.attack.long_blocks import Guest
from tests.support.children import in_a_child

CODE = 0x1000
HLT = "f4"
MODELS = {"x86_64": "QEMU64", "aarch64": "A72"}
NOTHING = {"x86_64": b"\x90", "aarch64": b"\x1f\x20\x03\xd5"}
LONGEST = {"x86_64": 500, "aarch64": 250}  # a block of arm64 does not cross the engine's pages of 1 KiB
WAIT = {"x86_64": b"\xf4", "aarch64": b"\x7f\x20\x03\xd5"}
LOCK_ON_A_REGISTER = "f0 0f ab c5"  # lock bts ebp, eax

X87 = {
    "constants": "d9 eb dd d8",  # fldpi; fstp st(0)
    "exchanges": "d9 c9",  # fxch
    "copies": "d9 c0 dd d9",  # fld st(0); fstp st(1)
    "memory": "db 2c 25 00 00 08 00 db 3c 25 00 00 08 00",  # fld tbyte [0x80000]; fstp tbyte [0x80000]
    "comparisons": "db f0",  # fcomi st(0)
}


def engine_with(architecture: str, code: bytes) -> Engine:
    ram = Ram(1 << 20)
    ram.write(CODE, code)
    return Engine(architecture, MODELS[architecture], ram)


def outcome(code: str, times: int) -> str:
    """Of FNINIT, the code so many times, and HLT."""
    engine = engine_with("x86_64", bytes.fromhex("db e3" + code * times + HLT))
    stop, _, _ = engine.start(CODE, 1000)
    return f"{stop.name} {engine.get('rip') - CODE - 2 - times * len(bytes.fromhex(code))}"


@pytest.fixture(params=["native", "python"])
def routine(request, monkeypatch):
    """Both ways to end blocks: machine code, and a Python function where that cannot be had."""
    if request.param == "python":
        monkeypatch.setattr(translation, "_ROUTINES", {})


@pytest.mark.parametrize("code", X87.values(), ids=X87)
def test_many_x87_instructions(routine, code):
    """A thousand x87 instructions in a row run to their end; a table of 512 places is not overrun."""
    assert in_a_child(lambda: outcome(code, 500)) == "HALTED 1"


@pytest.mark.parametrize("architecture", MODELS)
def test_blocks_of_ordinary_code_are_not_cut(routine, architecture):
    """Hundreds of ordinary instructions are one block, so time, which is counted in blocks, is as before."""
    engine = engine_with(architecture, NOTHING[architecture] * LONGEST[architecture] + WAIT[architecture])
    stop, _, blocks = engine.start(CODE, 1000)
    assert (stop, blocks) == (Stop.HALTED, 1)


@pytest.mark.parametrize(
    ("architecture", "family"),
    [(architecture, family) for architecture in FAMILIES for family in FAMILIES[architecture]],
)
def test_long_blocks_of_every_kind(architecture, family):
    """The process survives what is repeated hundreds of times: a sample of ``python -m tests.attack.long_blocks``."""

    def run() -> str:
        guest = Guest(architecture)
        return " ".join(sorted({guest.run(make_block(architecture, family, seed)) for seed in range(12)}))

    assert not in_a_child(run).startswith("SIG")


def abort() -> str:
    engine_with("x86_64", bytes.fromhex("90" + LOCK_ON_A_REGISTER + HLT)).start(CODE, 1000)
    return "came back"


def test_what_the_translator_has_no_code_for():
    """Where the engine would abort, the run ends with an error that says where."""
    assert in_a_child(abort).startswith(f"MachineError: the emulator cannot translate the code at {CODE:#x}")


def test_other_engines_live_on():
    """After one engine has failed, the process and its other engines go on."""

    def run() -> str:
        with pytest.raises(MachineError):
            abort()
        return outcome(X87["constants"], 10)

    assert in_a_child(run) == "HALTED 1"


def test_an_engine_that_fails_in_a_hook_of_another():
    """The engine that fails is the inner one, and the outer goes on."""

    def run() -> str:
        outer = engine_with("x86_64", bytes.fromhex("0f a2" + HLT))  # cpuid
        seen = []

        def answer() -> int:
            with pytest.raises(MachineError):
                abort()
            seen.append("failed")
            return 1

        outer.hook_instruction("CPUID", answer)
        return f"{outer.start(CODE, 1000)[0].name} {seen}"

    assert in_a_child(run) == "HALTED ['failed']"


def test_an_engine_that_fails_in_another_thread():
    """The thread that fails comes back with the error; the engine of the main thread is not touched."""

    def run() -> str:
        answers = []

        def fail() -> None:
            with pytest.raises(MachineError):
                abort()
            answers.append("failed")

        engine = engine_with("x86_64", bytes.fromhex("0f a2" + HLT))

        def answer() -> int:
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
            return 1

        engine.hook_instruction("CPUID", answer)
        return f"{engine.start(CODE, 1000)[0].name} {answers}"

    assert in_a_child(run) == "HALTED ['failed']"


def test_an_unknown_build():
    """A build of Unicorn whose structure does not look as expected is refused, and named."""
    engine = engine_with("x86_64", b"\xf4")
    handle = engine._uc._uch.value
    with pytest.raises(MachineError, match="this build of Unicorn"):
        TranslationLimit(handle, 12345, (96, 56))
    with pytest.raises(MachineError, match="this build of Unicorn"):
        find_counters(handle, lambda length: None)
    with pytest.raises(MachineError, match="this build of Unicorn"):
        find_cpu(handle, [(1, 2)])  # where no function is
    with pytest.raises(MachineError, match="this build of Unicorn"):
        find_flushes(handle, lambda: None)


def test_too_little_address_space():
    """Where there is no room for an engine, that is an error with a sentence; the library would end the process."""

    def run() -> str:
        gc.collect()  # engines of other tests
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20), used + (500 << 20)))
        engine_with("x86_64", b"\xf4")
        return "made"

    assert in_a_child(run).startswith("MachineError: no room for another machine: it needs")
