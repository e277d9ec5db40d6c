"""The words of a query in passages, against a loop over words."""

import math

import pytest
import torch

from cmr.kernels.words import words, words_
from tests.kernels.helpers.asking import asking


@pytest.mark.parametrize(
    ("batch", "tokens", "blocks", "block", "parts"),
    [(1, 1, 1, 1, 1), (2, 7, 20, 5, 3), (3, 40, 9, 32, 2)],
)
def test_against_a_loop(batch: int, tokens: int, blocks: int, block: int, parts: int) -> None:
    torch.manual_seed(tokens)
    given = asking(batch, tokens, blocks, block, parts)
    query, of, token_ids, positions, successor, seen, classes = (x.tolist() for x in given[:7])
    found = words(*given)

    def word(token: int) -> int:
        return classes[token] if 0 <= token < len(classes) - 1 else classes[-1]

    for row in range(batch):
        held = [
            [word(t) for t, p in zip(ids, at, strict=True) if p >= 0] if sees else []
            for ids, at, sees in zip(token_ids, positions, seen[row], strict=True)
        ]
        texts = [own + (held[n] if n >= 0 else []) for own, n in zip(held, successor, strict=True)]
        total = sum(seen[row])
        scores = torch.zeros(parts, blocks, dtype=torch.float64)
        asked = {word(t) for t, p in zip(query[row], of[row], strict=True) if p >= 0} - {0}
        rare = {}
        for w in asked:
            holding = sum(w in text for text, sees in zip(texts, seen[row], strict=True) if sees)
            rare[w] = math.log1p((total - holding + 0.5) / (holding + 0.5))
        for w, part in {(word(t), p) for t, p in zip(query[row], of[row], strict=True)}:
            if w in asked and part >= 0:
                counts = torch.tensor([text.count(w) for text in texts]).double()
                scores[part] += rare[w] * counts * 2.2 / (counts + 1.2)
        torch.testing.assert_close(found.scores[row].double(), scores, atol=1e-5, rtol=1e-5)
        usual = 0.5 / (total + 0.5)
        wanted = [rare.get(word(token), usual) for token in query[row]]
        assert found.rarity[row].tolist() == pytest.approx(wanted, abs=1e-5)


def test_opcheck() -> None:
    given = asking(2, 7, 20, 5, 3)
    shapes = (2, 7, 20), (2, 7), (2, 7), (2, 3, 20)
    # The counts and weights are the kernels' own, and written by nothing else.
    out = [torch.zeros(shape) for shape in shapes]
    torch.library.opcheck(words_, (*given[:8], *out))


def test_full_graph() -> None:
    given = asking(1, 7, 20, 5, 3)
    torch._dynamo.reset()
    compiled = torch.compile(words, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(*given), words(*given), strict=True))


def test_nothing_is_stored_or_asked() -> None:
    given = asking(2, 3, 0, 5, 2)
    assert words(*given).scores.shape == (2, 2, 0)
    given = asking(2, 0, 4, 5, 2)
    assert (words(*given).scores == 0).all()


def test_bad_input_is_named() -> None:
    given = asking(2, 7, 20, 5, 3)
    with pytest.raises(TypeError, match=r"of: dtype torch\.int64"):
        words(given[0], given[1].int(), *given[2:])
    with pytest.raises(ValueError, match=r"successor: shape \[N=20\]"):
        words(*given[:4], given[4][1:], *given[5:])
