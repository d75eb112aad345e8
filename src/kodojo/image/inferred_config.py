"""The configuration of a kernel that came without one, as far as its image shows it.

Each option leaves something behind that the others do not: a function, a message, a word of the version magic.
Asking for one that leaves nothing is an error, not a guess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kodojo.errors import MissingInformationError
from kodojo.image.config import Config

if TYPE_CHECKING:
    from kodojo.image.image import Image

__all__ = ["ALWAYS_VENEERS", "InferredConfig"]

# Option -> any of these functions is in the kernel. (Those of initcalls are listed, too.)
_FUNCTIONS: dict[str, tuple[str, ...]] = {
    "KALLSYMS_ALL": ("linux_banner",),  # a variable
    "MODULE_SIG": ("is_module_sig_enforced",),
    "MODULE_DECOMPRESS": ("module_decompress",),
    "LIVEPATCH": ("klp_module_coming",),
    "STRICT_MODULE_RWX": ("module_enable_ro", "module_enable_rodata_ro"),
    "ARM_MODULE_PLTS": ("get_module_plt",),
    "FORTIFY_SOURCE": ("fortify_panic", "__fortify_panic"),
    "HAVE_STATIC_CALL_INLINE": ("static_call_module_notify",),
    "RANDOMIZE_BASE": ("kaslr_early_init", "kaslr_init", "kernel_randomize_memory"),
    "DYNAMIC_FTRACE": ("ftrace_caller",),
    "DYNAMIC_FTRACE_WITH_REGS": ("ftrace_regs_caller",),
    "CRYPTO_MD5": ("md5_mod_init",),
    "CRYPTO_SHA1": ("sha1_generic_mod_init",),
    "CRYPTO_SHA256": ("sha256_generic_mod_init",),
    "CRYPTO_SHA512": ("sha512_generic_mod_init",),
    "CRYPTO_SHA3": ("sha3_generic_mod_init",),
    "CRYPTO_SM3_GENERIC": ("sm3_generic_mod_init",),
    "CRYPTO_STREEBOG": ("streebog_mod_init",),
    "CRYPTO_RSA": ("rsa_set_pub_key",),
    "CRYPTO_ECDSA": ("ecdsa_verify",),
    "CRYPTO_ECRDSA": ("ecrdsa_verify",),
    "CRYPTO_SM2": ("sm2_verify",),
    "INTEGRITY_PLATFORM_KEYRING": ("platform_keyring_init",),
    "SYSTEM_BLACKLIST_KEYRING": ("is_hash_blacklisted",),
}

_TEXTS: dict[str, bytes] = {
    "PPC_KERNEL_PCREL": b"%s: doesn't contain .mygot.",
    "MODULE_FORCE_LOAD": b"%s: %s: kernel tainted.",
    "MODULE_COMPRESS_XZ": b"not an xz compressed module",
    "MODULE_COMPRESS_ZSTD": b"not a zstd compressed module",
    "MODULE_COMPRESS_GZIP": b"not a gzip compressed module",
    # A warning (level 4) where it is allowed, an error (3) where not.
    "MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS": b"\x014%s: module uses symbol (%s) from namespace",
}

ALWAYS_VENEERS = b"Modules: module %s: overflow in relocation type"
"""How a message begins of arm64 kernels that have veneers whatever their configuration is (6.5)."""

_VERMAGIC_WORDS = {
    "SMP": "SMP",
    "PREEMPT_BUILD": "preempt",
    "PREEMPT_RT": "preempt_rt",
    "MODULE_UNLOAD": "mod_unload",
    "MODVERSIONS": "modversions",
}


class InferredConfig(Config):
    """What can be told from the image alone.

    :meth:`enabled` raises MissingInformationError for an option that leaves no trace.
    """

    def __init__(self, image: Image) -> None:
        words = image.vermagic.split()[1:]
        found: dict[str, bool] = {"KALLSYMS": True}
        found |= {option: word in words for option, word in _VERMAGIC_WORDS.items()}
        found |= {option: image.has_text(text) for option, text in _TEXTS.items()}
        symbols = image.kallsyms
        found |= {option: any(map(symbols.__contains__, names)) for option, names in _FUNCTIONS.items()}
        # Other architectures have functions of that name, too; and later arm64 kernels have no such option any more.
        veneers = "module_emit_plt_entry" in symbols
        found["MODULE_SECTIONS"] = veneers and image.architecture == "riscv64"
        found["ARM64_MODULE_PLTS"] = (
            veneers and image.architecture == "aarch64" and not image.has_text(ALWAYS_VENEERS)
        )
        found["MODULE_SIG_FORCE"] = found["MODULE_SIG"] and _initially_set(image, "sig_enforce")
        super().__init__({f"CONFIG_{option}": "y" for option, value in found.items() if value})
        self._known = frozenset(f"CONFIG_{option}" for option in found)
        self._release = image.release

    def enabled(self, name: str) -> bool:
        full = name if name.startswith("CONFIG_") else f"CONFIG_{name}"
        if full not in self._known:
            raise MissingInformationError(
                f"{self._release}: {full} cannot be told from the kernel alone",
                hint=f"add the kernel with its configuration: --config config-{self._release}",
            )
        return super().enabled(full)


def _initially_set(image: Image, variable: str) -> bool:
    """Whether a ``bool`` with an initial value is true at boot."""
    address = image.kallsyms.get(variable)
    if address is None:
        return False
    return image.elf.read(address, 1) != b"\0"
