"""What is typed, as data. ROOT stands for the root, CONF for its modprobe.d, TREE for its modules."""

from __future__ import annotations

from tests.kmod_suite.trees import Mod

__all__ = ["BUILTIN", "CASES", "CONFIGURATION", "MODULES"]

MODULES = (
    Mod(
        "drivers/low.ko",
        exports={"low_get": 0x1234ABCD, "low_put": 7},
        info={
            "alias": ["thing:v1*", "low-alias"],
            "parm": ["size:how large", "names:who"],
            "parmtype": "size:int",
            "depends": "",
        },
    ),
    Mod("drivers/mid-one.ko", exports={"mid_do": 0xFFFFFFFF}, needs={"low_get": 0x1234ABCD, "printk": 0x92997ED8}),
    Mod("drivers/top.ko", needs={"mid_do": 0xFFFFFFFF, "low_put": 7}, info={"alias": "thing:v1d[0-9]*"}),
    Mod("fs/soft.ko", info={"softdep": "pre: before-it post: after-it", "description": "text: with = and\ttab"}),
    Mod("fs/before-it.ko", info={"author": ["A. One", "B. Two"]}),
    Mod("fs/after-it.ko"),
    Mod("loop/ring-a.ko", info={"softdep": "pre: ring-b"}),
    Mod("loop/ring-b.ko", info={"softdep": "post: ring-c"}),
    Mod("loop/ring-c.ko", info={"softdep": "pre: ring-a"}),
    Mod("misc/plain.ko"),
    Mod("misc/noversions.ko", exports={"nv": 0}, needs={"low_get": None}),
    Mod("misc/black.ko", info={"alias": "colour:black*"}),
    Mod("misc/white.ko", info={"alias": "colour:black-and-white"}),
    Mod("misc/inst-a.ko"),
    Mod("misc/inst-b.ko"),
)
BUILTIN = {"core-thing": "license=GPL\nalias=core-alias\nparm=x:an x", "other": "license=GPL v2"}

CONFIGURATION = {
    "a-first.conf": "# comment\nalias my-top top\nalias wild*card plain\nalias nowhere off\nblacklist black\n"
    "options mid-one a=1\tb=2\noptions low \\\n  from=wrap\noptions plain back=\\d two=\\\\e\nblacklist core_thing\n",
    "b-commands.conf": "install inst-a /bin/true $CMDLINE_OPTS; /sbin/modprobe --ignore-install inst-a\n"
    "install inst-b /bin/false\nremove inst-b /bin/true\nalias my-inst inst-a\noptions inst-a x=1\n",
    "n-soft.conf": "softdep plain pre: low post: inst-a\nsoftdep white  pre:   low   mid-one\nsoftdep junk nothing\n",
    "z-bad.conf": "nonsense here\noptions lonely\nalias one\n\toptions indented x=1\nconfig other\nblacklist a]b\n"
    "options esc a=1 \\\\\nb=2\noptions last end",
    "ignored.txt": "blacklist ignored\n",
}

_TREE = ("-d", "ROOT", "-S", "4.4.4-suite", "-C", "CONF")
_FILE = "TREE/kernel/drivers/mid-one.ko"

CASES: dict[str, tuple[str, ...]] = {
    # What would be loaded
    "depends-chain": ("modprobe", *_TREE, "-D", "top"),
    "depends-leaf": ("modprobe", *_TREE, "-D", "low"),
    "depends-dashes": ("modprobe", *_TREE, "-D", "mid_one"),
    "depends-options": ("modprobe", *_TREE, "-D", "my-top", "t=1", "u=a b", "v='q r'"),
    "depends-alias": ("modprobe", *_TREE, "-D", "thing:v1d2"),
    "depends-symbol": ("modprobe", *_TREE, "-D", "symbol:mid_do"),
    "depends-config-pattern": ("modprobe", *_TREE, "-D", "wild-x-card"),
    "depends-alias-to-nothing": ("modprobe", *_TREE, "-D", "nowhere"),
    "depends-builtin": ("modprobe", *_TREE, "-D", "core-thing"),
    "depends-builtin-alias": ("modprobe", *_TREE, "-D", "core-alias"),
    "depends-softdep": ("modprobe", *_TREE, "-D", "soft"),
    "depends-softdep-config": ("modprobe", *_TREE, "-D", "white"),
    "depends-softdep-loop-a": ("modprobe", *_TREE, "-D", "ring-a"),
    "depends-softdep-loop-c": ("modprobe", *_TREE, "-D", "ring-c"),
    "depends-install": ("modprobe", *_TREE, "-D", "inst-a", "y=2"),
    "depends-install-alias": ("modprobe", *_TREE, "-D", "my-inst"),
    "depends-install-ignored": ("modprobe", *_TREE, "-D", "-i", "inst-a"),
    "depends-install-in-softdep": ("modprobe", *_TREE, "-D", "plain"),
    "depends-blacklisted-name": ("modprobe", *_TREE, "-D", "black"),
    "depends-blacklisted-alias": ("modprobe", *_TREE, "-D", "colour:black-and-white"),
    "depends-use-blacklist": ("modprobe", *_TREE, "-D", "-b", "black"),
    "depends-unknown": ("modprobe", *_TREE, "-D", "nosuch"),
    "depends-all": ("modprobe", *_TREE, "-a", "-D", "top", "nosuch", "plain"),
    "depends-quiet": ("modprobe", *_TREE, "-q", "-D", "nosuch"),
    "depends-no-tree": ("modprobe", "-d", "ROOT", "-S", "5.5.5", "-D", "top"),
    "depends-bad-pattern": ("modprobe", *_TREE, "-D", "a]b"),
    # Without loading
    "dry-run": ("modprobe", *_TREE, "-n", "top", "x=1"),
    "dry-run-verbose": ("modprobe", *_TREE, "-n", "-v", "top", "x=1"),
    "dry-run-show": ("modprobe", *_TREE, "--show", "--verbose", "plain"),
    "dry-run-force": ("modprobe", *_TREE, "-n", "-v", "--force", "mid-one"),
    "dry-run-force-vermagic": ("modprobe", *_TREE, "-n", "-v", "--force-vermagic", "mid-one"),
    "dry-run-force-modversion": ("modprobe", *_TREE, "-n", "-v", "--force-modversion", "mid-one"),
    "dry-run-first-time": ("modprobe", *_TREE, "-n", "-v", "--first-time", "low"),
    "dry-run-builtin-first-time": ("modprobe", *_TREE, "-n", "-v", "--first-time", "other"),
    "dry-run-builtin": ("modprobe", *_TREE, "-n", "-v", "other"),
    "dry-run-blacklisted": ("modprobe", *_TREE, "-n", "-v", "colour:black"),
    # Removing what is not there
    "remove-absent": ("modprobe", *_TREE, "-n", "-r", "top"),
    "remove-absent-first-time": ("modprobe", *_TREE, "-n", "-r", "--first-time", "top"),
    "remove-unknown": ("modprobe", *_TREE, "-n", "-r", "nosuch"),
    "remove-builtin": ("modprobe", *_TREE, "-n", "-r", "other"),
    "remove-several": ("modprobe", *_TREE, "-n", "-r", "--first-time", "top", "nosuch", "low"),
    "remove-command": ("modprobe", *_TREE, "-n", "-v", "-r", "inst-b"),
    "remove-dependencies": ("modprobe", *_TREE, "-n", "-v", "-r", "--remove-dependencies", "low"),
    "remove-bad-wait": ("modprobe", *_TREE, "-n", "-r", "-w", "soon", "top"),
    "remove-wait": ("modprobe", *_TREE, "-n", "-r", "--wait=0x10", "top"),
    # Looking up
    "resolve-name": ("modprobe", *_TREE, "-R", "mid-one"),
    "resolve-alias": ("modprobe", *_TREE, "--resolve-alias", "thing:v1d5"),
    "resolve-config-alias": ("modprobe", *_TREE, "-R", "my-top"),
    "resolve-builtin": ("modprobe", *_TREE, "-R", "core_thing"),
    "resolve-blacklisted": ("modprobe", *_TREE, "-R", "colour:black-and-white"),
    "resolve-symbol": ("modprobe", *_TREE, "-R", "symbol:low_put"),
    "resolve-dot-in-brackets": ("modprobe", *_TREE, "-R", "thing[p.b]v"),
    "resolve-unknown": ("modprobe", *_TREE, "-R", "nosuch"),
    # Showing
    "showconfig": ("modprobe", *_TREE, "-c"),
    "showconfig-one-file": ("modprobe", "-d", "ROOT", "-S", "4.4.4-suite", "-C", "CONF/a-first.conf", "--showconfig"),
    "showconfig-nothing": ("modprobe", "-d", "ROOT", "-S", "4.4.4-suite", "-C", "ROOT/absent", "--show-config"),
    "exports": ("modprobe", *_TREE, "--show-exports", "TREE/kernel/drivers/low.ko"),
    "exports-without-crcs": ("modprobe", *_TREE, "--show-exports", "TREE/kernel/misc/noversions.ko"),
    "exports-none": ("modprobe", *_TREE, "--show-exports", "TREE/kernel/misc/plain.ko"),
    "exports-absent": ("modprobe", *_TREE, "--show-exports", "TREE/absent.ko"),
    "exports-no-module": ("modprobe", *_TREE, "--show-exports", "CONF/a-first.conf"),
    "modversions": ("modprobe", *_TREE, "--dump-modversions", _FILE),
    "modversions-none": ("modprobe", *_TREE, "--show-modversions", "TREE/kernel/misc/plain.ko"),
    # modinfo
    **{
        f"modinfo-{field}": ("modinfo", "-F", field, "TREE/kernel/drivers/low.ko", "TREE/kernel/fs/before-it.ko")
        for field in ("filename", "name", "license", "parm", "alias", "author", "vermagic", "depends", "nosuch")
    },
    "modinfo-whole": ("modinfo", "TREE/kernel/fs/soft.ko", "TREE/kernel/drivers/low.ko"),
    "modinfo-null": ("modinfo", "-0", "TREE/kernel/fs/soft.ko", "TREE/kernel/drivers/low.ko"),
    "modinfo-null-field": ("modinfo", "-0", "-p", "TREE/kernel/drivers/low.ko"),
    "modinfo-name": ("modinfo", "-b", "ROOT", "-k", "4.4.4-suite", "mid-one"),
    "modinfo-alias": ("modinfo", "-b", "ROOT", "-k", "4.4.4-suite", "-n", "colour:black-and-white"),
    "modinfo-builtin": ("modinfo", "-b", "ROOT", "-k", "4.4.4-suite", "core-thing"),
    "modinfo-builtin-null": ("modinfo", "-0", "-b", "ROOT", "-k", "4.4.4-suite", "core-thing"),
    "modinfo-modname": ("modinfo", "-m", "-b", "ROOT", "-k", "4.4.4-suite", "-n", "mid_one"),
    "modinfo-modname-of-alias": ("modinfo", "--modname", "-b", "ROOT", "-k", "4.4.4-suite", "low-alias"),
    "modinfo-unknown": ("modinfo", "-b", "ROOT", "-k", "4.4.4-suite", "nosuch", "top"),
    "modinfo-nothing": ("modinfo",),
    # Messages before anything is asked of a kernel
    "insmod-nothing": ("insmod",),
    "insmod-stdin": ("insmod", "-"),
    "insmod-absent": ("insmod", "ROOT/absent.ko"),
    "rmmod-nothing": ("rmmod",),
    "rmmod-absent": ("rmmod", "kd-nosuch", "kd_nosuch2"),
    "rmmod-file": ("rmmod", "TREE/kernel/drivers/mid-one.ko"),
    "modprobe-nothing": ("modprobe",),
    # Wrong options
    **{
        f"usage-{tool}-{number}": (tool, *words)
        for tool, uses in {
            "insmod": (["-Q"], ["--nonsense", "x"], ["-", "-Q"]),
            "rmmod": (["-Q"], ["--nonsense", "x"], ["--force=1", "x"], ["--s", "--ve"]),
            "modprobe": (["-Q"], ["-C"], ["--config"], ["--all=x", "y"], ["-nQ", "x"], ["--dirname"], ["-w"]),
            "modinfo": (["-Q"], ["-F"], ["--field"], ["--null=1", "x"], ["--set-v"]),
        }.items()
        for number, words in enumerate(uses)
    },
}
