"""What a kernel without a config file shows of its configuration."""

from __future__ import annotations

import pytest

from kodojo.errors import MissingInformationError
from kodojo.image.image import Image
from kodojo.image.inferred_config import InferredConfig

pytestmark = pytest.mark.kernel


def test_agrees_with_the_config_file(image: Image) -> None:
    """Every option that is inferred is what the distribution's config file says (`m` counts as absent)."""
    inferred = InferredConfig(image)
    wrong = {
        option: (inferred.get(option), image.config.get(option))
        for option in inferred._known
        if (inferred.get(option) == "y") != (image.config.get(option) == "y")
    }
    assert wrong == {}


def test_what_leaves_no_trace_is_not_guessed(image: Image) -> None:
    """An option that the image does not show raises, and the hint says what to give."""
    with pytest.raises(MissingInformationError) as caught:
        InferredConfig(image).enabled("MODULE_FORCE_UNLOAD")
    assert "--config" in caught.value.hint
