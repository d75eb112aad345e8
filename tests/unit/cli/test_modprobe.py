from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from kodojo.errors import LoadError, LogRecord, Refusal, UnloadError
from kodojo.image.additions import Additions
from kodojo.image.tree import ModuleTree
from tests.support.elf_writer import module_writer


@pytest.fixture(autouse=True)
def tree(tmp_path, kernel, cards):
    """The machine's kernel has two modules; one needs the other."""
    root = tmp_path / "modules"
    root.mkdir()
    base = module_writer(name="base")
    base.add("__ksymtab", b"\0" * 12, 2)
    base.add("__ksymtab_strings", b"base_get\0", 2)
    base.symbol("base_get", ".text")
    base.symbol("__ksymtab_base_get", "__ksymtab")
    user = module_writer(name="user", info={"alias": "some-thing", "description": "uses base"})
    user.symbol("base_get")
    for name, writer in (("base", base), ("user", user)):
        (root / f"{name}.ko").write_bytes(writer.build())
    index = SimpleNamespace(directory=tmp_path / "index")
    kernel.image = SimpleNamespace(
        release="9.9-paper",
        modules=ModuleTree(root),
        index_directory=index.directory,
        additions=Additions(tmp_path / "additions", root),
    )
    cards.images["9.9-paper"] = kernel.image
    return root


def test_modprobe_loads_a_module_and_what_it_needs_and_says_nothing(run, kernel, tree):
    result = run("modprobe", "user", "a=1", "b=x y")
    assert (result.exit_code, result.output) == (0, "")
    assert kernel.programs == ["modprobe"]
    assert kernel.loaded == [(f"{tree}/base.ko",), (f"{tree}/user.ko", 'a=1 b="x y"')]


def test_modprobe_v_prints_what_it_does_as_modprobe_does(run, tree):
    assert run("modprobe", "-v", "some-thing").output == f"insmod {tree}/base.ko \ninsmod {tree}/user.ko \n"


@pytest.mark.parametrize("options", [("-n", "-v"), ("-D",)])
def test_a_dry_run_starts_no_machine(run, kernel, session, tree, options):
    """A machine that was never started has no modules: it need not be started to know that."""
    result = run("modprobe", *options, "user")
    assert result.output == f"insmod {tree}/base.ko \ninsmod {tree}/user.ko \n"
    assert (kernel.loaded, session.asked_to_save) == ([], None)


def test_a_dry_run_looks_at_the_machine_that_there_is_and_saves_nothing(
    run, kernel, session, tree, module, monkeypatch
):
    """What is loaded already would not be loaded again."""
    monkeypatch.setattr(session, "describe", lambda: SimpleNamespace(release="9.9-paper", cmdline=""))
    assert run("modprobe", "-n", "-v", "user").output == f"insmod {tree}/base.ko \ninsmod {tree}/user.ko \n"
    kernel.modules = [module("user")]
    assert run("modprobe", "-n", "-v", "user").output == ""
    assert (kernel.loaded, session.asked_to_save) == ([], False)


@pytest.mark.parametrize(
    ("options", "modversion", "vermagic"),
    [
        ((), False, False),
        (("--force",), True, True),
        (("-f",), True, True),
        (("--force-modversion",), True, False),
        (("--force-vermagic",), False, True),
    ],
)
def test_forcing_is_for_all_that_is_loaded(run, kernel, options, modversion, vermagic):
    """kmod forces the dependencies, too."""
    assert run("modprobe", *options, "user").exit_code == 0
    assert kernel.forced == [{"force_modversion": modversion, "force_vermagic": vermagic}] * 2


def test_a_removal_waits_as_long_as_it_may(run, kernel, module):
    """-w lets the machine's time pass, at intervals that double, and gives up at the end."""

    def busy():
        raise UnloadError("in use", 11)

    kernel.modules = [module("base", refcount=1)]
    kernel.on_rmmod = busy
    result = run("modprobe", "-r", "-w", "10", "base")
    assert result.stderr.startswith("modprobe: ERROR: could not remove 'base': Resource temporarily unavailable\n")
    assert [round(1000 * seconds) for seconds in kernel.slept] == [1, 2, 4, 3]
    result = run("modprobe", "-r", "-w", "soon", "base")
    assert (result.exit_code, result.stderr) == (1, "modprobe: ERROR: unexpected wait value 'soon'.\n")


def test_showconfig_prints_the_configuration_and_the_index(run, session, tmp_path):
    """-c needs no machine; the lines can be read as a modprobe.d again."""
    (tmp_path / "x.conf").write_text("blacklist b\noptions base a=1\n")
    assert run("modprobe", "-c", "-C", str(tmp_path)).output.splitlines() == [
        "blacklist b",
        "options base a=1",
        "",
        "# End of configuration files. Dumping indexes now:",
        "",
        "alias some_thing user",
        "alias symbol:base_get base",
    ]
    assert session.fresh is None


def test_a_tree_of_ones_own(run, tree, tmp_path, cards):
    """-d names the root, -S the release; -S alone is a kernel of the store."""
    own = tmp_path / "root/lib/modules/1.2"
    own.mkdir(parents=True)
    (own / "base.ko").write_bytes((tree / "base.ko").read_bytes())
    result = run("modprobe", "-D", "-d", str(tmp_path / "root"), "-S", "1.2", "base")
    assert result.output == f"insmod {own}/base.ko \n"
    assert run("modprobe", "-D", "-S", "9.9-paper", "base").output == f"insmod {tree}/base.ko \n"
    assert run("modprobe", "-D", "-S", "9.8", "base").exit_code == 1


def test_show_exports_and_modversions(run, tree, tmp_path):
    """Of a file, or of what a name stands for; without CRCs they are 0, without the section it is fatal."""
    writer = module_writer(name="v")
    entry = (0xDEADBEEF).to_bytes(8, "little") + b".kfree".ljust(56, b"\0")
    writer.add("__versions", entry, 2)
    writer.add("__ksymtab_strings", b"\0v_get\0v_put\0", 2)
    path = tmp_path / "v.ko"
    path.write_bytes(writer.build())
    assert run("modprobe", "--show-modversions", str(path)).output == "0xdeadbeef\tkfree\n"
    assert run("modprobe", "--show-exports", str(path)).output == "0x00000000\tv_get\n0x00000000\tv_put\n"
    result = run("modprobe", "--dump-modversions", "some-thing")
    text = "modprobe: FATAL: could not get modversions of user: No such file or directory\n"
    assert (result.exit_code, result.stderr) == (1, text)
    assert run("modprobe", "--show-exports", "nosuch").stderr == "modprobe: FATAL: Module nosuch not found.\n"


def test_an_unknown_name_is_fatal_and_with_a_a_warning(run, tree):
    result = run("modprobe", "nosuch")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"modprobe: FATAL: Module nosuch not found in directory {tree}\n"
    result = run("modprobe", "-a", "user", "nosuch")
    assert result.stderr == f"modprobe: WARNING: Module nosuch not found in directory {tree}\n"
    assert run("modprobe", "-q", "nosuch").output == ""


def test_no_name_is_an_error_in_modprobes_words(run):
    result = run("modprobe")
    assert (result.exit_code, result.stderr) == (1, "modprobe: ERROR: missing parameters. See -h.\n")


def test_a_refusal_has_modprobes_text_the_log_and_the_reason(run, kernel):
    def refuse():
        log = (LogRecord(3, "base: no hardware"),)
        raise LoadError("no", Refusal(19, "do_init_module", "init-failed", log, "its init said no", "buy one"))

    kernel.on_insmod = refuse
    result = run("modprobe", "user")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "modprobe: ERROR: could not insert 'user': No such device"
    for text in ("base: no hardware", "its init said no", "buy one"):
        assert text in result.stderr


def test_first_time_complains_about_a_loaded_module(run, kernel, module):
    kernel.modules = [module("user")]
    assert run("modprobe", "user").exit_code == 0
    result = run("modprobe", "--first-time", "user")
    assert result.exit_code == 1
    assert result.stderr == "modprobe: ERROR: could not insert 'user': Module already in kernel\n"


def test_modprobe_r_removes_what_is_no_longer_needed(run, kernel, module):
    kernel.modules = [module("user"), module("base")]
    assert run("modprobe", "-r", "-v", "user").output == "rmmod user\nrmmod base\n"
    assert kernel.removed == ["user", "base"]


def test_modprobe_r_leaves_what_is_in_use(run, kernel, module):
    kernel.modules = [module("base", refcount=1)]
    result = run("modprobe", "-r", "base")
    assert (result.exit_code, result.stderr) == (1, "modprobe: FATAL: Module base is in use.\n")


def test_modprobe_reads_the_configuration_it_is_given_and_the_kernels_command_line(run, kernel, tmp_path):
    (tmp_path / "x.conf").write_text("options base x=1\n")
    kernel.files["/proc/cmdline"] = b"quiet base.y=2\n"
    run("modprobe", "-C", str(tmp_path), "base")
    assert kernel.loaded[0][1].split() == ["x=1", "y=2"]


def test_modprobe_big_r_prints_names_without_a_machine(run, session):
    assert run("modprobe", "-R", "some-thing").output == "user\n"
    assert session.fresh is None
    assert run("modprobe", "-R", "nosuch").exit_code == 1


def test_modprobe_json_has_the_actions_and_the_failures(run, kernel, tree):
    shape = json.loads(run("modprobe", "--json", "-n", "user", "a=1").output)
    assert (shape["ok"], shape["dry_run"]) == (True, True)
    assert [(a["action"], a["name"], a["options"]) for a in shape["actions"]] == [
        ("insmod", "base", ""),
        ("insmod", "user", "a=1"),
    ]
    kernel.on_insmod = lambda: (_ for _ in ()).throw(LoadError("no", Refusal(8, "elf", "bad-elf")))
    result = run("modprobe", "--json", "user")
    shape = json.loads(result.stdout)
    assert (result.exit_code, shape["ok"], shape["failures"][0]["errno_name"]) == (1, False, "ENOEXEC")


# -- modinfo ------------------------------------------------------------------------------------------------


def test_modinfo_finds_files_names_and_aliases(run, tree):
    by_file = run("modinfo", str(tree / "user.ko"))
    assert by_file.exit_code == 0
    assert f"filename:       {tree}/user.ko\n" in by_file.output
    assert run("modinfo", "user").output == run("modinfo", "some-thing").output == by_file.output


def test_modinfo_prints_one_field_only_if_asked(run):
    assert run("modinfo", "-F", "description", "user").output == "uses base\n"
    assert run("modinfo", "-d", "user").output == "uses base\n"
    assert run("modinfo", "-F", "nosuch", "user").output == ""


def test_modinfo_tells_what_it_does_not_find(run, tree):
    result = run("modinfo", "nosuch", "user")
    assert (result.exit_code, result.stderr) == (1, "modinfo: ERROR: Module nosuch not found.\n")
    assert "uses base" in result.stdout
    assert run("modinfo").stderr == "modinfo: ERROR: missing module or filename.\n"


def test_modinfo_tells_of_a_file_that_is_no_module(run, tmp_path):
    bad = tmp_path / "bad.ko"
    bad.write_bytes(b"junk")
    result = run("modinfo", str(bad))
    assert result.exit_code == 1
    assert result.stderr.startswith("modinfo: ERROR: could not get modinfo from 'bad': Invalid argument")


def test_modinfo_json_has_the_fields_in_order(run):
    (shape,) = json.loads(run("modinfo", "--json", "user").output)
    assert shape["ok"] is True
    assert [field["key"] for field in shape["fields"]][:4] == ["license", "retpoline", "intree", "name"]


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A module that is not in the tree, with what it needs beside it; the working directory is theirs."""
    directory = tmp_path / "driver"
    directory.mkdir()
    part = module_writer(name="part", info={"alias": "own-part"})
    part.add("__ksymtab", b"\0" * 12, 2)
    part.symbol("part_get", ".text")
    part.symbol("__ksymtab_part_get", "__ksymtab")
    whole = module_writer(name="whole")
    whole.symbol("part_get")
    whole.symbol("base_get")
    for name, writer in (("part", part), ("whole", whole)):
        (directory / f"{name}.ko").write_bytes(writer.build())
    monkeypatch.chdir(directory)
    return directory


def test_a_file_is_loaded_with_what_lies_beside_it(run, kernel, tree, driver):
    result = run("modprobe", "./whole.ko", "a=1")
    assert (result.exit_code, result.output) == (0, "")
    assert sorted(kernel.loaded[:2]) == sorted([(f"{tree}/base.ko",), ("part.ko",)])
    assert kernel.loaded[2:] == [("whole.ko", "a=1")]


def test_several_files_and_a_directory(run, kernel, tree, driver, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run("modprobe", "-a", "driver/whole.ko", "user").exit_code == 0
    assert {words[0] for words in kernel.loaded} == {f"{tree}/base.ko", f"{tree}/user.ko"} | {
        f"driver/{name}.ko" for name in ("part", "whole")
    }
    kernel.loaded.clear()
    assert run("modprobe", "--path", "driver", "own-part").exit_code == 0
    assert kernel.loaded == [("driver/part.ko",)]
    assert run("modprobe", "-R", "--path", "driver", "own-part").output == "part\n"
    assert run("modprobe", "--path", "nothing", "own-part").exit_code == 1


def test_what_is_no_file_of_a_module_is_said_in_kmods_words(run, kernel, driver):
    (driver / "text").write_text("")
    for name, reason in (("./gone.ko", "No such file or directory"), ("./text", "No such file or directory")):
        result = run("modprobe", name)
        text = f"modprobe: FATAL: Failed to get module from path {name}: {reason}\n"
        assert (result.exit_code, result.stderr) == (1, text)
    assert kernel.loaded == []


def test_a_file_without_a_slash_is_a_name_and_the_hint_says_so(run, driver):
    assert run("modprobe", "whole.ko").stderr.splitlines()[-1] == (
        "hint: a file is named by its path: kodojo modprobe ./whole.ko"
    )


def test_what_was_installed_for_the_kernel_is_read_unless_c_names_other_configuration(run, kernel, tree, tmp_path):
    place = tmp_path / "additions/etc/modprobe.d"
    place.mkdir(parents=True)
    (place / "own.conf").write_text("options base a=1\n")
    (tmp_path / "other.conf").write_text("options base b=2\n")
    run("modprobe", "base")
    run("modprobe", "-C", str(tmp_path / "other.conf"), "base")
    assert kernel.loaded == [(f"{tree}/base.ko", "a=1 "), (f"{tree}/base.ko", "b=2 ")]
