"""The list of cases."""

from __future__ import annotations

import pytest

from tests.oracle.catalogue import GROUPS, catalogue

# All but the modules of the tree, which are large.
SMALL = [group for group in GROUPS if group != "tree"]


@pytest.mark.kernel
def test_cases_are_determined(image, series):
    """The same kernel has always the same cases, each of them once, in every group."""
    cases = catalogue(image, series, SMALL)
    assert cases == catalogue(image, series, SMALL)
    assert len({case.digest for case in cases}) == len({(case.group, case.name) for case in cases}) == len(cases)
    assert [group for group in GROUPS if group in {case.group for case in cases}] == SMALL
