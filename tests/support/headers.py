"""A writer of small headers trees: what a build leaves behind, for tests to take away from and to contradict."""

from pathlib import Path

RELEASE = "6.1.0-test"
CONFIG = """\
# Linux/x86 6.1.7 Kernel Configuration
CONFIG_X86_64=y
CONFIG_LOCALVERSION="-test"
CONFIG_SMP=y
CONFIG_PREEMPT_BUILD=y
CONFIG_MODULE_UNLOAD=y
CONFIG_MODVERSIONS=y
CONFIG_KALLSYMS=y
CONFIG_STRICT_MODULE_RWX=y
CONFIG_USB=m
# CONFIG_MODULE_SIG is not set
"""
SYMVERS = """\
0x0000002a\tmodule_layout\tvmlinux\tEXPORT_SYMBOL\t
0x00000001\t_printk\tvmlinux\tEXPORT_SYMBOL\t
0x00000002\tonly_gpl\tvmlinux\tEXPORT_SYMBOL_GPL\t
0x00000003\tin_space\tvmlinux\tEXPORT_SYMBOL\tSPACE
0x00000004\tparam_ops_int\tvmlinux\tEXPORT_SYMBOL\t
0x00000005\tusb_register_driver\tdrivers/usb/core/usbcore\tEXPORT_SYMBOL_GPL\t
0x00000006\tmii_link\tdrivers/net/mii-lib\tEXPORT_SYMBOL\t
"""
FILES = {
    "Module.symvers": SYMVERS,
    ".config": CONFIG,
    "include/config/auto.conf": "".join(line + "\n" for line in CONFIG.splitlines() if not line.startswith("#")),
    "include/config/kernel.release": f"{RELEASE}\n",
    "include/generated/utsrelease.h": f'#define UTS_RELEASE "{RELEASE}"\n',
    "include/generated/compile.h": '#define UTS_MACHINE\t\t"x86_64"\n',
    "include/linux/module.h": "struct module { struct module_layout core_layout; };\n",
    "include/linux/panic.h": "#define TAINT_TEST 18\n",
    "include/linux/moduleloader.h": "int apply_relocate_add(void);\n",
    "include/linux/oid_registry.h": "enum OID {\n\tOID_sha256,\t\t/* 2.16.840.1.101.3.4.2.1 */\n};\n",
}
"""By path in the tree."""


def write_headers(directory: Path, changes: dict[str, str | None] | None = None) -> Path:
    """Write a tree that is in order but for the changes.

    :param changes: path in the tree -> content, None to leave the file out.
    """
    for name, content in (FILES | (changes or {})).items():
        if content is not None:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    return directory
