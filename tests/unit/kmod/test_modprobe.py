from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kodojo.errors import InputError, LoadError, Refusal, UnloadError, UnmodelledError
from kodojo.kmod.config import ModprobeConfig
from kodojo.kmod.modprobe import (
    Flags,
    How,
    Modprobe,
    answer_request,
    join_options,
    lookup,
    modprobe_quietly,
    resolve,
)

ENODEV, EEXIST, ENOENT, EINVAL, EAGAIN = 19, 17, 2, 22, 11


@dataclass
class CardKernel:
    """Loads what it is told; refuses what the test says."""

    refuses: dict[str, int] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    users: dict[str, list[str]] = field(default_factory=dict)
    tried: list[str] = field(default_factory=list)

    def loaded(self, name):
        return name in self.modules

    present = loaded

    def insmod(self, path: Path, options: str) -> None:
        name = path.stem.replace("-", "_")
        self.tried.append(name)
        if name in self.refuses:
            raise LoadError(f"{name} refused", Refusal(self.refuses[name], "init", "init-failed"))
        self.modules.append(name)
        self.options[name] = options

    def refcount(self, name):
        return self.counts.get(name, 0) if name in self.modules else -1

    def holders(self, name):
        return self.users.get(name, [])

    def rmmod(self, name):
        if name in self.refuses:
            raise UnloadError(f"{name} refused", self.refuses[name])
        self.modules.remove(name)


@pytest.fixture
def card():
    return CardKernel()


def _names(actions):
    return [action.name for action in actions]


# -- what is loaded ---------------------------------------------------------------------------------------


def test_soft_and_hard_dependencies_are_loaded_around_the_module(index):
    """Each module is loaded between its own soft dependencies, behind all its hard ones."""
    found = resolve(index, ModprobeConfig(), "fs")
    assert _names(found) == ["base", "sum_fast", "sum_plain", "lib", "fs", "tail"]
    assert [action.required for action in found] == [True, False, False, True, True, False]


def test_every_kind_of_name_leads_to_the_module(index):
    for name in ("fs", "fs-fs", "pci:v00008086d00000001sv7"):
        assert [candidate.name for candidate in lookup(index, ModprobeConfig(), name)] == ["fs"], name
    assert [candidate.name for candidate in lookup(index, ModprobeConfig(), "symbol:lib_do")] == ["lib"]
    assert lookup(index, ModprobeConfig(), "bad]") == []


def test_an_alias_of_modprobe_d_comes_before_a_module_of_that_name(index):
    config = ModprobeConfig(aliases=[("fs", "tail")])
    assert _names(resolve(index, config, "fs")) == ["tail"]


def test_what_is_built_in_is_found_and_not_loaded(index, card):
    (action,) = resolve(index, ModprobeConfig(), "net-pf-1")
    assert (action.how, str(action)) == (How.BUILTIN, "builtin core")
    assert Modprobe(index, ModprobeConfig()).insert(card, "core")
    assert card.tried == []


def test_options_go_to_their_module_and_the_callers_to_the_one_that_was_asked_for(index, card):
    config = ModprobeConfig(options=[("lib", "a=1"), ("lib", "b=2"), ("fs", "c=3")])
    Modprobe(index, config).insert(card, "fs", "d=4")
    assert card.options["lib"].split() == ["a=1", "b=2"]
    assert card.options["fs"] == "c=3 d=4"
    assert card.options["base"] == ""


def test_options_for_an_alias_count_only_when_it_is_asked_for(index, card):
    config = ModprobeConfig(options=[("fs_fs", "x=1")])
    assert [a.options for a in resolve(index, config, "fs") if a.last] == [""]
    assert [a.options for a in resolve(index, config, "fs-fs") if a.last] == ["x=1 "]


def test_the_blacklist_applies_to_aliases_and_with_b_to_names(index):
    config = ModprobeConfig(blacklist=["sum_fast"])
    assert _names(resolve(index, config, "crypto-sum")) == ["sum_plain"]
    assert _names(resolve(index, config, "sum-fast")) == ["sum_fast"]
    assert resolve(index, config, "sum-fast", flags=Flags(use_blacklist=True)) == []


def test_values_with_blanks_are_quoted():
    assert join_options(["a=1", "b=x y", 'c="x y"', "d e"]) == 'a=1 b="x y" c="x y" d e'


def test_soft_dependencies_in_a_circle_come_to_an_end(index):
    config = ModprobeConfig(softdeps_before=[("base", "pre: tail"), ("tail", "pre: base")])
    assert "base" in _names(resolve(index, config, "base"))


def test_soft_dependencies_without_end_are_an_input_error(tree):
    for number in range(300):
        tree.add(f"m{number}", softdep=f"pre: m{number + 1}")
    with pytest.raises(InputError, match="nested"):
        resolve(tree.open(), ModprobeConfig(), "m0")


# -- loading ----------------------------------------------------------------------------------------------


def test_what_is_loaded_is_not_loaded_again(index, card):
    card.modules += ["base", "sum_fast"]
    assert Modprobe(index, ModprobeConfig()).insert(card, "fs")
    assert card.tried == ["sum_plain", "lib", "fs", "tail"]


def test_first_time_fails_for_a_loaded_module(index, card):
    card.modules.append("fs")
    run = Modprobe(index, ModprobeConfig(), Flags(first_time=True))
    assert not run.insert(card, "fs")
    assert run.outcome.messages == [(False, "could not insert 'fs': Module already in kernel")]
    assert Modprobe(index, ModprobeConfig()).insert(card, "fs")


def test_a_failing_soft_dependency_does_not_matter(index, card):
    card.refuses = {"sum_fast": ENODEV, "tail": ENODEV}
    run = Modprobe(index, ModprobeConfig())
    assert run.insert(card, "fs")
    assert (run.outcome.status, run.outcome.messages, run.outcome.failures) == (0, [], [])


def test_a_failing_dependency_ends_the_load(index, card):
    card.refuses = {"lib": ENODEV}
    run = Modprobe(index, ModprobeConfig())
    assert not run.insert(card, "fs")
    assert run.outcome.messages == [(False, "could not insert 'fs': No such device")]
    assert "fs" not in card.tried
    assert [name for name, _ in run.outcome.failures] == ["lib"]


def test_enoent_has_modprobes_own_text(index, card):
    card.refuses = {"base": ENOENT}
    run = Modprobe(index, ModprobeConfig())
    run.insert(card, "base")
    text = "could not insert 'base': Unknown symbol in module, or unknown parameter (see dmesg)"
    assert run.outcome.messages == [(False, text)]


def test_a_module_that_appears_meanwhile_is_as_good(index, card):
    card.refuses = {"base": EEXIST}
    assert Modprobe(index, ModprobeConfig()).insert(card, "base")


def test_the_last_candidate_decides(index, card):
    """All modules with an alias are tried; the exit status is that of the last one."""
    card.refuses = {"sum_fast": ENODEV}
    run = Modprobe(index, ModprobeConfig())
    assert run.insert(card, "crypto-sum")
    assert card.tried == ["sum_fast", "sum_plain"]
    assert run.outcome.messages == [(False, "could not insert 'sum_fast': No such device")]


def test_an_unknown_name_is_told_with_the_directory(index, card):
    run = Modprobe(index, ModprobeConfig())
    assert not run.insert(card, "no-such")
    assert run.outcome.messages == [(True, f"Module no-such not found in directory {index.root}")]
    assert run.outcome.status == 1


def test_a_dry_run_shows_and_loads_nothing(index, card):
    lines = []
    Modprobe(index, ModprobeConfig(), Flags(dry_run=True), lines.append).insert(card, "lib", "x=1")
    assert lines[0] == f"insmod {index.path('base')} "
    assert lines[-1] == f"insmod {index.path('lib')} x=1"
    assert card.tried == []


@pytest.mark.parametrize(("command", "good"), [("/bin/true", True), ("/bin/false", False)])
def test_true_and_false_as_install_commands_need_no_shell(index, card, command, good):
    run = Modprobe(index, ModprobeConfig(install=[("base", command)]))
    assert run.insert(card, "base") is good
    assert card.tried == []
    if not good:
        assert run.outcome.messages[-1] == (False, "could not insert 'base': Invalid argument")


def test_any_other_install_command_is_unmodelled_unless_ignored(index, card):
    config = ModprobeConfig(install=[("base", "/sbin/insmod x $CMDLINE_OPTS")])
    with pytest.raises(UnmodelledError, match="no shell"):
        Modprobe(index, config).insert(card, "base", "a=1")
    assert str(resolve(index, config, "base", "a=1")[-1]) == "install /sbin/insmod x $CMDLINE_OPTS a=1"
    assert Modprobe(index, config, Flags(ignore_install=True)).insert(card, "base")


# -- removing ---------------------------------------------------------------------------------------------


def test_what_a_removed_module_needed_goes_with_it_if_nobody_else_uses_it(index, card):
    card.modules = ["base", "lib"]
    assert Modprobe(index, ModprobeConfig()).remove(card, "lib")
    assert card.modules == []


def test_a_dependency_in_use_stays(index, card):
    card.modules, card.counts = ["base", "lib"], {"base": 1}
    assert Modprobe(index, ModprobeConfig()).remove(card, "lib")
    assert card.modules == ["base"]


def test_a_module_in_use_is_not_removed(index, card):
    card.modules, card.counts = ["base"], {"base": 1}
    run = Modprobe(index, ModprobeConfig())
    assert not run.remove(card, "base")
    assert run.outcome.messages == [(True, "Module base is in use.")]


def test_holders_are_removed_first_if_asked_for(index, card):
    card.modules, card.users = ["base", "lib"], {"base": ["lib"]}
    assert Modprobe(index, ModprobeConfig(), Flags(remove_holders=True)).remove(card, "base")
    assert card.modules == []


def test_what_is_not_there_is_removed_already(index, card):
    assert Modprobe(index, ModprobeConfig()).remove(card, "base")
    run = Modprobe(index, ModprobeConfig(), Flags(first_time=True))
    assert not run.remove(card, "base")
    assert run.outcome.messages == [(True, "Module base is not in kernel.")]


def test_what_is_built_in_cannot_be_removed(index, card):
    run = Modprobe(index, ModprobeConfig())
    assert not run.remove(card, "core")
    assert run.outcome.messages == [(True, "Module core is builtin.")]


def test_the_kernels_refusal_to_remove_is_told(index, card):
    card.modules, card.refuses = ["tail"], {"tail": EAGAIN}
    run = Modprobe(index, ModprobeConfig())
    assert not run.remove(card, "tail")
    assert run.outcome.messages == [(False, "could not remove 'tail': Resource temporarily unavailable")]


# -- the kernel's requests ----------------------------------------------------------------------------------


def test_a_request_of_the_kernel_is_answered_with_the_exit_status(index, card):
    ask = lambda name: modprobe_quietly(index, ModprobeConfig(), name, card.loaded, card.insmod)  # noqa: E731
    assert ask("fs-fs") == 0
    assert "fs" in card.modules
    assert ask("no-such-thing") == 1
    card.refuses = {"sum_plain": ENODEV}
    card.modules.remove("sum_plain")
    assert ask("sum-plain") == 1


def test_a_request_is_told_without_being_answered(index):
    found = answer_request(
        index, ModprobeConfig(), ["/sbin/modprobe", "-q", "--", "lib"], lambda name: name == "base"
    )
    assert _names(found) == ["sum_fast", "sum_plain", "lib"]
    with pytest.raises(UnmodelledError):
        answer_request(index, ModprobeConfig(), ["/sbin/modprobe", "lib"])
