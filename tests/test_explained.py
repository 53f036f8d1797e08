"""A wrong result is reported together with what in the transport's state may explain it."""

from dataclasses import dataclass

import pytest

from mnnvl_lab.errors import WrongResult
from mnnvl_lab.measure import check


@dataclass(frozen=True, kw_only=True)
class Suspicious:
    """A transport whose dispatch comes out wrong."""

    words: str

    def dispatch(self, batch, *, validated=False):
        raise WrongResult("row 3 is wrong")

    def explanation(self):
        return self.words


@pytest.mark.parametrize(
    ("words", "said"), [("", "row 3 is wrong"), ("a head is 2 at rest", "row 3 is wrong; a head is 2 at rest")]
)
def test_the_error_carries_the_explanation(words, said):
    with pytest.raises(WrongResult) as caught:
        check.checked_round(Suspicious(words=words), None, None)
    assert str(caught.value) == said
