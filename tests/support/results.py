"""Results of checks, made up, for the tests of reports."""

from __future__ import annotations

from kodojo.check.results import KernelColumn, Matrix, Result
from kodojo.errors import Detail, LogRecord, Refusal
from kodojo.loader.verdict import Verdict

__all__ = ["HOSTILE", "REFUSED", "matrix", "refusal"]

HOSTILE = "</script><script>alert(1)</script>\"'&\x1b[31m\udcff\u2028<!--"

_LOG = (LogRecord(3, "m: version magic '1.0' should be '2.0'"),)
_DETAIL = Detail("release", "1.0 is not 2.0", {"module": "1.0"}, ("more of it",))
REFUSED = Verdict(
    ok=False,
    errno=8,
    slug="vermagic-mismatch",
    why="built for 1.0",
    hint="build it again",
    log=_LOG,
    problems=(
        Refusal(8, "check_modinfo", "vermagic-mismatch", _LOG, "built for 1.0", "build it again", (_DETAIL,)),
        Refusal(2, "simplify_symbols", "unknown-symbol", (), "nobody exports gone", ""),
    ),
)


def matrix(*labels: str) -> Matrix:
    """A kernel that loads everything, one that refuses everything, and one that could not be used."""
    kernels = tuple(KernelColumn(name, f"{name}.0", "x86_64") for name in ("good", "bad"))
    made = Matrix(labels, (*kernels, KernelColumn("gone", problem="no such file")))
    for label in labels:
        made.add(
            [
                Result(label, "good", Verdict(ok=True), sha256="ab", size=3),
                Result(label, "bad", REFUSED, "check_modinfo", notes=("a note",), first=("dir/other.ko",)),
                Result(label, "gone", failure="no such file", advice="give another"),
            ]
        )
    return made


def refusal(slug: str, why: str, errno: int = 2) -> Verdict:
    """A kernel's no, for one reason."""
    problem = Refusal(errno, "simplify_symbols", slug, (LogRecord(4, f"m: {why}"),), why, "do something")
    return Verdict(
        ok=False, errno=errno, slug=slug, why=why, hint="do something", log=problem.log, problems=(problem,)
    )
