"""What an error says first."""

import pytest
from torch._utils import ExceptionWrapper

from eva_utils.utils.names import first_line


def test_the_first_line_is_that_of_the_message_or_the_class():
    assert first_line(ValueError("\n one\n two")) == "one"
    assert first_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("error", [ValueError("a.png is 9x9 pixels: give size="), EOFError("a.png ends too soon")])
def test_of_an_error_in_a_loaders_worker_the_first_line_is_its_own(error):
    try:
        raise error
    except type(error):
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error), match=r"Caught .* in DataLoader worker") as caught:
        wrapped.reraise()
    assert first_line(caught.value) == str(error)
