"""Words of a text as they are compared: in small letters, without punctuation."""

from __future__ import annotations

import re
import string

_PUNCTUATION = str.maketrans({c: " " for c in string.punctuation})


def normalise(text: str) -> str:
    """Casefolded words with single blanks; commas inside numbers go, other punctuation parts."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.casefold())
    text = re.sub(r"(?<=\w)['\u2019](?=\w)", "", text)
    return " ".join(text.translate(_PUNCTUATION).split())
