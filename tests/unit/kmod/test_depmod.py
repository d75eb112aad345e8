"""What depmod writes, held against the distribution's own depmod."""

from __future__ import annotations

import gzip
import itertools
import lzma

import pytest

from kodojo.image.depmod_config import DepmodConfig
from kodojo.image.module_search import goes_first
from kodojo.image.tree import ModuleTree
from kodojo.kmod.config import ModprobeConfig
from kodojo.kmod.depmod import FILES, KernelSymbols, Wishes, files_of, link, scan, write_files
from kodojo.kmod.index import ModuleIndex
from kodojo.kmod.modprobe import lookup, resolve
from tests.support.module_tree import RELEASE, TreeWriter, kmod_tool

KMOD_30 = [name for name in FILES if name != "modules.weakdep"]


@pytest.fixture
def tree(tmp_path):
    written = TreeWriter(tmp_path / "root")
    written.config_directory.mkdir(parents=True)
    return written


def ours(tree: TreeWriter, wishes: Wishes | None = None, kernel: KernelSymbols | None = None):
    """What kodojo's depmod finds and writes, with the same depmod.d."""
    config = DepmodConfig.read([tree.config_directory], RELEASE)
    modules = scan(ModuleTree(tree.root, config), checksums=kernel is not None)
    graph = link(modules, kernel.crcs if kernel else None, wishes)
    return graph, files_of(graph, tree.root)


def compare(tree: TreeWriter) -> dict[str, bytes]:
    """Have both at work, and compare all files."""
    done = tree.depmod()
    assert done.returncode == 0, done.stderr
    theirs = tree.files()
    made = ours(tree)[1].files
    assert {name: made[name] for name in KMOD_30} == theirs
    return made


@pytest.fixture
def sample(tree):
    """Something of everything: chains and diamonds, names of all kinds, modules that nobody lists."""
    tree.add("kernel/lib/base.ko", export_crcs={"base_get": 1, "base_put": 2}, alias=("symbol-base", "crypto-sum"))
    tree.add("kernel/lib/left-side.ko", exports=("left",), needs=("base_get", "printk"))
    tree.add("kernel/lib/right.ko", exports=("right",), needs=("base_put",), crcs={"left": 7, "module_layout": 1})
    tree.add("kernel/fs/top.ko", needs=("right", "left"), weak=("base_get",), softdep="pre: left-side post: tail")
    tree.add(
        "kernel/tail.ko", alias=("char-major-10-200", "devname:net/tun", "fs-tail", "a-[b-c]-d", "a]b", "fs-tail")
    )
    tree.add("kernel/blk.ko", alias=("block-major-7-*", "devname:blk"))
    tree.add("kernel/disc.ko", alias=("devname:disc", "block-major-007-3"), weakdep="tail")
    tree.add("kernel/same1.ko", alias=("crypto-sum", "pci:v0001d*"), exports=("left",))
    tree.add("kernel/x.y-z.ko")
    tree.put("kernel/junk.ko", b"junk")
    tree.put("kernel/empty.ko", b"")
    tree.put("kernel/notes.txt", b"")
    for number in range(40):  # not in modules.order: in the order of a hash then
        tree.add(
            f"extra/unlisted-{number}.ko", exports=(f"unlisted_{number}", f"a{number}b"), alias=f"n{number % 3}*"
        )
    packed = tree.add("kernel/packed.ko", exports=("packed_do",), needs=("right",))
    tree.put("kernel/packed.ko.xz", lzma.compress(packed.read_bytes(), check=lzma.CHECK_CRC32))
    packed.unlink()
    misnamed = tree.add("kernel/misnamed.ko", alias="by-content", needs=("packed_do",))
    misnamed.write_bytes(lzma.compress(misnamed.read_bytes(), check=lzma.CHECK_CRC32))
    tree.order(
        "kernel/fs/top.ko", "kernel/tail.ko", "kernel/lib/left-side.ko", "kernel/lib/base.ko", "kernel/packed.ko",
        "kernel/gone.ko", "kernel/lib/right.ko", "kernel/same1.ko", "kernel/tail.ko",
    )  # fmt: skip
    tree.put("modules.builtin", b"kernel/core/one-two.ko\nkernel/one.ko\n\n#none\nkernel/one.ko\n")
    info = b"one_two.license=GPL\0one_two.alias=net-pf-1\0bad\0no_module.alias=y-z[0-9]\0odd.key\0one.alias=lost\0"
    tree.put("modules.builtin.modinfo", info + b"one.alias=net-pf-*\0one.alias=\0one.alias=a]\0one.alias=cut")
    return tree


def test_all_files_are_depmods_byte_for_byte(sample):
    compare(sample)


def test_weak_dependencies_have_a_file_of_their_own(sample):
    """kmod has it since version 33."""
    expected = b"# Weak dependencies extracted from modules themselves.\nweakdep disc tail\n"
    assert ours(sample)[1].files["modules.weakdep"] == expected


def test_without_modules_order_and_built_in_ones(sample):
    """All modules are in the order of the hash; two files are empty."""
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        (sample.root / name).unlink()
    assert compare(sample)["modules.builtin.bin"] == b""


def test_a_modules_order_without_an_end_of_line_is_none(sample):
    order = sample.root / "modules.order"
    order.write_bytes(order.read_bytes()[:-1])
    compare(sample)


def test_an_empty_tree(tree):
    compare(tree)


def test_warnings_about_symbols_are_depmods(sample, tmp_path):
    """Unknown symbols, CRCs that differ, and who needs whom: -e -E, -e -F, -v."""
    symvers = tmp_path / "Module.symvers"
    symvers.write_text(
        "0x0000000a\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n0xzz\tbad\tvmlinux\tEXPORT_SYMBOL\n0x1\tx\ty\tz\n"
    )
    sample.add("kernel/wrong.ko", needs=("base_get", "nowhere"), weak=("nowhere_weak",), crcs={"base_get": 9})
    theirs = sample.depmod("-e", "-E", str(symvers), "-v", "-n")
    kernel = KernelSymbols.from_symvers(symvers)
    graph, _ = ours(sample, Wishes(unknown=True, versions=True, needs=True), kernel)
    said = [line.removeprefix("depmod: WARNING: ") for line in theirs.stderr.splitlines() if "WARNING" in line]
    assert graph.warnings == said
    assert any("disagrees about version of symbol base_get" in line for line in said)
    assert graph.needs == [line for line in theirs.stdout.splitlines() if " needs " in line]
    assert kernel.problems == [f"{symvers}:2 Invalid symbol version 0xzz: Success"]


def test_symbols_of_a_system_map(sample, tmp_path):
    lines = "ffffffff81000000 r __ksymtab_printk\nffffffff81000000 T other\nodd\n"
    (tmp_path / "System.map").write_text(lines)
    theirs = sample.depmod("-e", "-F", str(tmp_path / "System.map"), "-n")
    kernel = KernelSymbols.from_system_map(tmp_path / "System.map")
    graph, _ = ours(sample, Wishes(unknown=True), kernel)
    assert graph.warnings == [
        line.removeprefix("depmod: WARNING: ") for line in theirs.stderr.splitlines() if "needs unknown" in line
    ]
    assert len(kernel.problems) == 1


# -- circles ------------------------------------------------------------------------------------------------


CIRCLES = [
    {"a": "b", "b": "a"},
    {"a": "a"},
    {"a": "b", "b": "c", "c": "a", "d": "a"},
    {"a": "b", "b": "ac", "c": "d", "d": ""},
]
# As in kmod's own test: three circles, one of which has two ways round, and modules beside them. Only in this order:
# where it begins with another one of h to k, kmod 30 goes round for ever, and so does what it prints.
LOOPS = {"a": "b", "b": "c", "c": "a", "d": "e", "e": "d", "f": "d", "g": "", "i": "j", "j": "hk", "k": "h", "h": "i"}


@pytest.mark.parametrize(
    ("needs", "listed"), [*((needs, listed) for needs in CIRCLES for listed in (True, False)), (LOOPS, True)]
)
def test_circles_are_named_as_depmod_names_them(tree, needs, listed):
    for name, others in needs.items():
        tree.add(f"kernel/mod-{name}.ko", exports=(f"do_{name}",), needs=[f"do_{other}" for other in others])
    if listed:
        tree.order(*(f"kernel/mod-{name}.ko" for name in needs))
    done = tree.depmod()
    graph, _ = ours(tree)
    said = [f"depmod: ERROR: Cycle detected: {cycle}" for cycle in graph.cycles]
    said.append(f"depmod: ERROR: Found {graph.cyclic} modules in dependency cycles!")
    assert (done.returncode, [line for line in done.stderr.splitlines() if "ERROR" in line]) == (1, said)
    assert tree.files() == {}


def test_a_maze_of_circles_ends(tree):
    """Every module needs every other one: kmod would list ways round for a lifetime."""
    names = [f"m{number}" for number in range(12)]
    for name in names:
        tree.add(f"kernel/{name}.ko", exports=(f"do_{name}",), needs=[f"do_{other}" for other in names])
    assert ours(tree)[0].cycles


# -- which file is the module -----------------------------------------------------------------------------------

PLACES = ("kernel/a", "extra", "updates/dkms", "foo", "foobar", "weak-updates")


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["search updates built-in"],
        ["search foobar foo built-in"],
        ["search foo foobar built-in"],
        ["search built-in updates extra"],
        ["search extra", "search updates built-in"],
        ["search updates extra built-in weak-updates"],
        ["override mod-simple * extra", "search updates"],
        [f"override mod-simple {RELEASE} foo", "override mod-simple * extra"],
        ["override mod_simple * extra", "override mod-simple 1.2.3 foo"],
        ["override mod-simple ^9[.]9 weak-updates"],
        ["override mod-simple 9\\\\.9.* foo"],
        ["search up\\", "dates built-in", "exclude foo dkms"],
        ["include x", "make_map_files no", "# nothing", "search", "override mod-simple", "odd line"],
    ],
)
@pytest.mark.parametrize("places", list(itertools.combinations(PLACES, 2)))
def test_of_two_files_depmods_choice_is_the_module(tree, lines, places):
    """Whatever depmod.d says; but for places that are equal for depmod, which takes what it happens to meet first."""
    for place in places:
        tree.add(f"{place}/mod-simple.ko")
    tree.config(*lines)
    choices = set()
    config = DepmodConfig.read([tree.config_directory], RELEASE)
    for first, second in (places, places[::-1]):
        found = ModuleTree(tree.root, config).found
        candidates = {file.path: file for file in (*found.modules.values(), *found.shadowed)}
        if len(candidates) < 2:
            choices |= candidates.keys()
            continue
        old, new = (candidates[f"{place}/mod-simple.ko"] for place in (first, second))
        choices.add(old.path if goes_first(config, old, new) else new.path)
    tree.depmod()
    chosen = tree.files()["modules.dep"].decode().partition(":")[0]
    assert chosen in (choices or {""})  # nothing where both are excluded
    if len(choices) == 1:
        assert ModuleTree(tree.root, config)["mod-simple"].path == tree.root / chosen


@pytest.mark.parametrize("search", ["search external foo built-in", "search foo built-in external", "search updates"])
def test_modules_outside_of_the_tree(tree, tmp_path, search):
    outside = tmp_path / "outside"
    tree.add(str(outside / "mod-simple.ko"))
    tree.add(str(outside / "only.ko"), needs=("do",))
    tree.add("foo/mod-simple.ko", exports=("do",))
    tree.config(f"external {RELEASE} {outside}", "external 1.2.3 /nowhere", "external * /nowhere/either", search)
    compare(tree)


def test_the_depmod_d_of_the_system_counts(tree):
    """A tree without modules.dep.bin is read with the depmod.d that lies beside it."""
    for place in ("extra", "updates"):
        tree.add(f"{place}/mod-simple.ko")
    assert tree.tree()["mod-simple"].path == tree.root / "updates/mod-simple.ko"
    tree.config("override mod-simple * extra")
    assert tree.tree()["mod-simple"].path == tree.root / "extra/mod-simple.ko"


def test_linked_directories_and_files(tree, tmp_path):
    """Links are followed in the tree and out of it; one to nowhere, and a pipe, are passed over."""
    outside = tmp_path / "outside"
    tree.add(str(outside / "far.ko"), exports=("far_do",))
    tree.add("kernel/near.ko", needs=("far_do",))
    (tree.root / "host").symlink_to(outside)
    (tree.root / "kernel/by-name.ko").symlink_to(outside / "far.ko")
    (tree.root / "kernel/nowhere.ko").symlink_to("/no/where.ko")
    compare(tree)


# -- what it is for ---------------------------------------------------------------------------------------------


def test_modprobe_goes_by_what_we_wrote(sample):
    """The real modprobe finds with our files what it finds with depmod's, and we find the same by either."""
    write_files(ours(sample)[1].files, sample.root)
    written = ModuleIndex.open(sample.tree(), None)
    names = [
        "top",
        "left_side",
        "crypto-sum",
        "fs-tail",
        "n1",
        "n1*",
        "*",
        "a-[b-c]-d",
        "a-b-d",
        "symbol:left",
        "nothing",
    ]
    names += ["net-pf-1", "net-pf-7", "one", "one-two", "y-z[0-9]", "y-z3", "no_module", "pci:v0001d*", "x"]
    for name in names:
        options = ("-C", "/dev/null", "-d", str(sample.top), "-S", RELEASE)
        real = kmod_tool("modprobe", *options, "-R", "--", name).stdout.split()
        assert [each.name for each in lookup(written, ModprobeConfig(), name)] == real, name
        shown = kmod_tool("modprobe", *options, "-D", "--", name).stdout
        actions = resolve(written, ModprobeConfig(), name)
        assert "".join(f"{action}\n" for action in actions if str(action)) == shown, name
    sample.files()
    for name in names:
        made = ModuleIndex.open(sample.tree(), None)
        assert lookup(made, ModprobeConfig(), name) == lookup(written, ModprobeConfig(), name)


def test_damaged_modules_have_no_part_in_it(tree):
    """Every truncation of a module can be looked at."""
    whole = tree.add("kernel/cut.ko", export_crcs={"x": 1}, needs=("y",), crcs={"y": 2}).read_bytes()
    for length in range(0, len(whole), 37):
        tree.put("kernel/cut.ko", whole[:length])
        graph, out = ours(tree, Wishes(unknown=True, versions=True), KernelSymbols({b"y": 2}))
        assert [module.name for module in graph.modules] == ["cut"]
        assert out.files["modules.dep"] == b"kernel/cut.ko:\n"


def test_files_are_replaced_whole(sample):
    """What was there stays until what is new is there."""
    write_files({"modules.dep": b"old"}, sample.root)
    kept = (sample.root / "modules.dep").open("rb")
    write_files(ours(sample)[1].files, sample.root)
    assert kept.read() == b"old"
    assert (sample.root / "modules.dep").stat().st_mode & 0o777 == 0o644
    kept.close()


def test_gzip_is_read_too(tree):
    """Debian's kmod is built without zlib, ours reads what any kmod reads."""
    path = tree.add("kernel/packed.ko", alias="x-y")
    tree.put("kernel/packed.ko.gz", gzip.compress(path.read_bytes()))
    path.unlink()
    assert ModuleIndex.open(tree.tree(), None).by_alias("x_y") == ["packed"]
