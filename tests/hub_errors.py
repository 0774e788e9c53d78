"""What errors of the Hub have in common."""

from collections.abc import Callable
from typing import Any

import pytest

from mmfusion.model.errors import HubError


def one_line(failing: Callable[[], Any]) -> str:
    """The text of the HubError that a call raises: one line, and a whole sentence."""
    with pytest.raises(HubError) as caught:
        failing()
    text = str(caught.value)
    assert "\n" not in text and text.endswith("."), text
    return text
