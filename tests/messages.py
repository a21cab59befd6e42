"""The one line that bad input is refused with."""

import re
from collections.abc import Callable

import pytest

from norton_det.utils.errors import InputError


def refusal(call: Callable[[], object]) -> str:
    """The line of a call that is refused; it has a mend."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and ";" in message and len(message) < 800, message
    return message


def refused(call: Callable[[], object], pattern: str) -> None:
    """A call is refused with a line that has this in it."""
    with pytest.raises(InputError) as caught:
        call()
    assert re.search(pattern, str(caught.value)) and "\n" not in str(caught.value), str(caught.value)
