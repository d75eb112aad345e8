"""Everything that is wrong with a module, on a paper kernel."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from kodojo.errors import DamageError, LoadError, UnmodelledError
from kodojo.image.exports import Export
from kodojo.loader import symbols
from kodojo.loader.load_info import LoadInfo
from kodojo.loader.refusal import refuse, would_damage
from kodojo.loader.steps import Steps
from kodojo.loader.survey import Survey
from kodojo.loader.verdict import check
from tests.support.loading import SpyTarget, export, finish, load, loadable, parameters

LAYOUT = Export("module_layout", 0xFFFFFFFF81000000, 0x1111, False, None)


def exported(name: str, crc: int = 0x2222, *, gpl: bool = False, namespace: str | None = None) -> Export:
    return Export(name, 0xFFFFFFFF81000100, crc, gpl, namespace)


def slugs(verdict) -> list[str]:
    return [problem.slug for problem in verdict.problems]


def texts(problem) -> list[str]:
    return [record.text for record in problem.log]


def sick_module(*, late: bool = False):
    """Another kernel's module: version magic, three checksums, two missing symbols, a parameter out of range."""
    crcs = {"module_layout": 1, "first": 2, "second": 3, "good": 0x2222, "param_ops_int": 0x2222}
    writer = loadable(late=late, info={"vermagic": "5.0 SMP preempt modversions "}, crcs=crcs)
    for name in ("first", "gone", "good", "second", "lost"):
        writer.symbol(name)
    parameters(writer, {"number": ("int", 0)})
    return finish(writer)


def sick_kernel(*, late: bool = False):
    names = ("first", "second", "good", "param_ops_int")
    return SpyTarget(LAYOUT, *(exported(name) for name in names), late=late)


@pytest.mark.parametrize("late", [False, True])
def test_goes_on(late):
    """What later stages object to is found behind the first refusal, one problem for each reason."""
    verdict = check(sick_kernel(late=late).image, sick_module(late=late).build())
    assert slugs(verdict) == ["module-layout-crc", "vermagic-mismatch", "symbol-version", "unknown-symbol"]
    by_slug = {problem.slug: problem for problem in verdict.problems}
    assert [detail.subject for detail in by_slug["symbol-version"].details] == ["first", "second"]
    assert [detail.subject for detail in by_slug["unknown-symbol"].details] == ["gone", "lost"]
    assert by_slug["symbol-version"].details[1].facts == {"owner": "vmlinux", "crc": 3, "kernel crc": 0x2222}
    assert by_slug["unknown-symbol"].step == "simplify_symbols"


def test_the_first_is_the_answer():
    """The verdict says what a load says that stops there: errno, lines, step."""
    target, file = sick_kernel(), sick_module()
    with pytest.raises(LoadError) as caught:
        load(target, file)
    verdict = check(target.image, file.build())
    first = verdict.problems[0]
    assert (first.errno, first.slug, first.step) == (
        caught.value.errno, caught.value.slug, caught.value.step,
    )  # fmt: skip
    assert first.log == caught.value.log == verdict.log
    assert (verdict.errno, verdict.slug, verdict.why) == (first.errno, first.slug, first.why)
    assert verdict.steps[-1].name == "check_modstruct_version"


def test_log_of_later_problems():
    """A problem that is not the answer has the lines about itself, and no others."""
    verdict = check(sick_kernel().image, sick_module().build())
    by_slug = {problem.slug: problem for problem in verdict.problems}
    expected = ["paper: Unknown symbol gone (err -2)", "paper: Unknown symbol lost (err -2)"]
    assert texts(by_slug["unknown-symbol"]) == expected
    assert len(texts(by_slug["symbol-version"])) == 4
    assert not any("gone" in text or "lost" in text for text in texts(by_slug["symbol-version"]))


def test_answer_of_a_stage_that_looks_at_everything():
    """Among several refusals of one stage the kernel answers with the last, which comes first in the verdict."""
    target = SpyTarget(exported("spaced", namespace="NS"))
    writer = loadable()
    for name in ("gone", "spaced"):
        writer.symbol(name)
    content = finish(writer).build()
    with pytest.raises(LoadError) as caught:
        load(target, content)
    verdict = check(target.image, content)
    assert slugs(verdict) == ["namespace-not-imported", "unknown-symbol"]
    assert verdict.errno == caught.value.errno == 22
    assert texts(verdict) == [record.text for record in caught.value.log]


def test_arguments_are_tried_behind_missing_symbols():
    """Parameters are tried although symbols are missing."""
    target = SpyTarget(exported("param_ops_int"))
    writer = loadable()
    writer.symbol("gone")
    parameters(writer, {"number": ("int", 0)})
    target._param_ops = {}
    target.image.kallsyms["param_ops_int"] = exported("param_ops_int").address
    verdict = check(target.image, finish(writer).build(), "number=x", "number=y")
    assert slugs(verdict) == ["unknown-symbol", "parameter-invalid"]
    assert [detail.facts for detail in verdict.problems[1].details] == [{"value": "x"}, {"value": "y"}]


def test_nothing_is_left():
    """A survey undoes what it did, as a load does that is refused."""
    target = SpyTarget()
    writer = loadable()
    writer.symbol("gone")
    survey = Survey(target)
    with pytest.raises(LoadError):
        load(target, finish(writer), steps=survey)
    assert target.modules() == []
    assert target.allocations == {}
    assert survey[-1].name != "simplify_symbols"


def test_real_load_stops_at_once():
    """Without a survey nothing runs behind the first refusal."""
    target, steps = SpyTarget(), Steps()
    writer = loadable(info={"vermagic": "5.0 "})
    writer.symbol("gone")
    with pytest.raises(LoadError):
        load(target, finish(writer), steps=steps)
    assert steps[-1].name == "check_modinfo"
    assert not any("gone" in text for _level, text in target.lines)


def test_exports_that_exist():
    """Every export that exists already is told, not only the first."""
    target = SpyTarget(exported("mine"), exported("yours"))
    writer = loadable()
    export(writer, "mine", crc=None)
    export(writer, "yours", gpl=True, crc=None)
    verdict = check(target.image, finish(writer).build())
    assert slugs(verdict) == ["duplicate-export"]
    assert {detail.subject for detail in verdict.problems[0].details} == {"mine", "yours"}
    assert [text for text in texts(verdict) if "yours" in text] == []


def test_damage_ends_it():
    """Damage is the answer where it comes first; behind a refusal it is not told, and nothing comes after it."""
    target = SpyTarget()
    survey = Survey(target)
    survey.begin("check_modinfo")
    survey.ended(would_damage("m", "there"))
    assert [refusal.slug for refusal in survey.refusals] == ["would-damage-kernel"]
    survey = Survey(target)
    survey.begin("check_modinfo")
    survey.refused(refuse("m", 8, "vermagic-mismatch", "why", ""))
    with pytest.raises(DamageError):
        survey.check(damaging)
    survey.ended(would_damage("m", "there"))
    assert [refusal.slug for refusal in survey.refusals] == ["vermagic-mismatch"]


def test_struct_module_of_another_size():
    """Relocations meet a struct module that does not fit: what they say of it is not told, what symbols say is."""
    target = SpyTarget(late=True)
    writer = loadable(late=False)
    writer.symbol("gone")
    verdict = check(target.image, finish(writer).build())
    assert slugs(verdict) == ["struct-module-size", "unknown-symbol"]
    survey = Survey(target)
    survey.begin("elf_validity_check")
    survey.refused(refuse("m", 8, "struct-module-size", "why", ""))
    survey.ended(refuse("m", 8, "relocation-target-nonzero", "why", ""))
    assert [refusal.slug for refusal in survey.refusals] == ["struct-module-size"]


def damaging() -> None:
    raise would_damage("m", "there")


damaging.__name__ = "simplify_symbols"


def test_gap_behind_a_refusal(monkeypatch):
    """What kodojo does not model is an error where it comes first, and not told behind a refusal."""

    def gap(*_arguments):
        raise UnmodelledError("not modelled")

    monkeypatch.setattr(symbols, "resolve_symbol_wait", gap)
    writer = loadable()
    writer.symbol("gone")
    with pytest.raises(UnmodelledError):
        check(SpyTarget().image, finish(writer).build())
    writer = loadable(info={"vermagic": "5.0 "})
    writer.symbol("gone")
    assert slugs(check(SpyTarget().image, finish(writer).build())) == ["vermagic-mismatch"]


def test_good_module_has_no_problems():
    """What loads has none."""
    verdict = check(SpyTarget().image, finish(loadable()).build())
    assert (verdict.ok, verdict.problems) == (True, ())


def test_problems_are_plain_data():
    """A problem can be made into dictionaries, lists, numbers and texts."""
    verdict = check(sick_kernel().image, sick_module().build())
    plain = asdict(verdict.problems[-1])
    assert plain["slug"] == verdict.problems[-1].slug
    assert isinstance(plain["details"][0]["facts"], dict)


def test_stages_alone_refuse_at_once():
    """A stage that is called without a survey raises where it refuses."""
    with pytest.raises(LoadError):
        LoadInfo(b"").steps.refused(refuse("m", 8, "elf-magic", "why", ""))
