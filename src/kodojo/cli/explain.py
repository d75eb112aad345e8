"""``kodojo explain``."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kodojo.cli.app import App, json_option, kernel_option, pass_app
from kodojo.errors import KodojoError

if TYPE_CHECKING:
    from kodojo.check.explain import Case
    from kodojo.image.image import Image

__all__ = ["explain"]

REFUSED = 1
UNCHECKED = 2


@click.command(short_help="Tell why a module does not load, and what to do.")
@click.argument("subject", metavar="FILE|REASON")
@click.argument("arguments", nargs=-1, metavar="[PARAM=VALUE...]")
@kernel_option
@json_option
@pass_app
def explain(app: App, subject: str, arguments: tuple[str, ...]) -> None:
    """Tell whether a kernel would load the module in FILE, and if not, why, and what is to be done.

    Nothing is booted. REASON is the name of a reason, such as vermagic-mismatch, and shows the page about it.

    The status is 0 if it would load, 1 if not, 2 if that could not be found out.
    """
    try:
        if _is_file(subject):
            loads = _explain_file(app, subject, arguments)
        else:
            loads = True
            _show_page(app, subject)
    except KodojoError as error:
        app.fail(error)
        raise click.exceptions.Exit(UNCHECKED) from error
    if not loads:
        raise click.exceptions.Exit(REFUSED)


def _is_file(subject: str) -> bool:
    return os.sep in subject or subject.partition(".")[1] == "." or Path(subject).exists()


def _show_page(app: App, slug: str) -> None:
    from kodojo.check.reasons import page  # noqa: PLC0415
    from kodojo.report.explain import page_text  # noqa: PLC0415

    text = page(slug)
    if app.json:
        app.out_json({"slug": slug, "page": text})
    else:
        app.out(page_text(text, app.paint))


def _explain_file(app: App, file: str, arguments: tuple[str, ...]) -> bool:
    """Explain a module; whether it would load."""
    from kodojo.check.explain import Case, notes  # noqa: PLC0415
    from kodojo.check.explain import explain as explained  # noqa: PLC0415
    from kodojo.loader.verdict import check, read_module  # noqa: PLC0415
    from kodojo.report.explain import shape, verdict_lines  # noqa: PLC0415

    content = read_module(file)
    image = _image(app)
    case = Case(image, content)
    case = Case(image, content, _built_for(app, case))
    verdict = explained(case, check(image, content, *arguments))
    remarks = notes(case, verdict)
    if app.json:
        app.out_json(shape(file, image.release, verdict, remarks))
    else:
        app.out(verdict_lines(file, image.release, verdict, remarks, app.paint))
    return verdict.ok


def _image(app: App) -> Image:
    """The kernel that is named, by name or by path, else the current one."""
    if app.kernel is not None and Path(app.kernel).exists():
        from kodojo.image.image import Image  # noqa: PLC0415

        return Image.open(app.kernel)
    return app.store.open(app.kernel)


def _built_for(app: App, case: Case) -> Image | None:
    """The kernel that the module was built for, if the store has it and it is another one."""
    if not case.release or case.release == case.image.release:
        return None
    with suppress(KodojoError):
        if case.release in app.store.names():
            return app.store.open(case.release)
    return None
