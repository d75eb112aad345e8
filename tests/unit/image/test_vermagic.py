import pytest

from kodojo.errors import MissingInformationError
from kodojo.image.architecture import architecture_of_config
from kodojo.image.config import Config
from kodojo.image.vermagic import compose_vermagic


def config(*options):
    return Config({f"CONFIG_{option}": "y" for option in options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("X86_64",), ""),
        (("X86_64", "SMP", "MODULE_UNLOAD", "MODVERSIONS"), "SMP mod_unload modversions "),
        (("X86_64", "SMP", "PREEMPT_BUILD", "PREEMPT_VOLUNTARY"), "SMP preempt "),
        (("X86_64", "SMP", "PREEMPT"), "SMP preempt "),
        (("X86_64", "SMP", "PREEMPT_RT"), "SMP preempt_rt "),
        (("X86_32", "M686", "SMP"), "SMP 686 "),
        (("ARM64", "SMP"), "SMP aarch64"),
        (("ARM", "CPU_32v7", "ARM_PATCH_PHYS_VIRT", "SMP"), "SMP ARMv7 p2v8 "),
        (("ARM", "CPU_32v6K", "CPU_32v7", "THUMB2_KERNEL"), "ARMv7 thumb2 "),
        (("RISCV", "64BIT"), "riscv"),
        (("PPC64", "CPU_LITTLE_ENDIAN", "MPROFILE_KERNEL", "RELOCATABLE"), "mprofile-kernel relocatable "),
        (("S390", "64BIT"), ""),
    ],
)
def test_words(options, words):
    """Every option adds its word, in the order of include/linux/vermagic.h; the architecture's come last."""
    assert compose_vermagic("6.1.0", config(*options)) == f"6.1.0 {words}"


def test_randstruct():
    """Randomised structures add the hash of their seed, which is known only from what the build generated."""
    randomised = config("X86_64", "RANDSTRUCT")
    assert compose_vermagic("6.1.0", randomised, "abc123") == "6.1.0 RANDSTRUCT_abc123"
    with pytest.raises(MissingInformationError, match="randstruct_hash"):
        compose_vermagic("6.1.0", randomised)


@pytest.mark.parametrize("options", [("MIPS",), ("X86_32",), ("ARM",)])
def test_not_known(options):
    """A configuration that leaves a part open is an error, not a guess."""
    with pytest.raises(MissingInformationError):
        compose_vermagic("6.1.0", config(*options))


def test_architecture():
    """The architecture is told from options; big-endian PowerPC is none of those that are known."""
    assert architecture_of_config(config("X86_64", "64BIT")).name == "x86_64"
    assert architecture_of_config(config("PPC64", "CPU_LITTLE_ENDIAN")).name == "ppc64le"
    assert architecture_of_config(config("PPC64")) is None


@pytest.mark.kernel
def test_real_kernel(image):
    """What is composed is the string that the kernel itself has."""
    assert compose_vermagic(image.release, image.config) == image.vermagic
