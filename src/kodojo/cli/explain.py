"""``kodojo explain``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from kodojo.cli.app import App, json_option, kernel_option, pass_app
from kodojo.errors import KodojoError

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
    from kodojo.check.suitable import Origin, StoreKernels  # noqa: PLC0415
    from kodojo.image.payload import read_module  # noqa: PLC0415
    from kodojo.loader.verdict import check  # noqa: PLC0415
    from kodojo.report.explain import shape, verdict_lines  # noqa: PLC0415

    payload = read_module(file)
    image = app.open_kernel(app.kernel)
    stored, origin = StoreKernels(app.store), Origin.of(payload.content)
    built_for = stored.of_release(origin.release) if origin.release not in ("", image.release) else None
    case = Case(image, payload.content, built_for, Path(file))
    verdict = explained(case, check(image, payload, *arguments))
    suitable = stored.suitable(lambda: origin, image, (problem.slug for problem in verdict.problems))
    verdict, remarks = suitable.told(verdict), notes(case, verdict)
    if app.json:
        app.out_json(shape(file, image.release, verdict, remarks, suitable.names))
    else:
        app.out(verdict_lines(file, image.release, verdict, remarks, app.paint))
    return verdict.ok
