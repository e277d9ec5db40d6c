"""Scores of what is asked in parts, against a loop over parts and passages."""

import math

import pytest
import torch

from cmr.kernels.search.parts import part_scores, part_scores_
from tests.kernels.helpers.compare import assert_close
from tests.kernels.helpers.parts import NUMBERS, parts_of


def deviations(values: list[float], clamp: float = math.inf) -> list[float]:
    mean = sum(values) / len(values)
    spread = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    if spread <= 1e-6 * max(abs(v) for v in values):
        return [0.0] * len(values)
    return [min(max((v - mean) / spread, -clamp), clamp) for v in values]


def loop(given, row: int) -> tuple[dict[int, float], float, list[list[float]]]:
    """The line of a row's visible blocks, its certainty, and the shares, all in float64."""
    z, seen, of, marked, words, windows = given
    z, rarity, said = z[row].double(), words.rarity[row].double(), words.scores[row].double()
    size, many = z.shape[1], NUMBERS.lined_words
    blocks = [n for n in range(size) if seen[row, n]]
    inside, holders = windows.inside.tolist(), windows.holders.tolist()
    lines, alone, shares, asking = [], [], [], 0
    for part in range(marked.shape[1]):
        own = [q for q in range(len(of[row])) if of[row, q] == part]
        peaks = {q: float(z[q].max()) for q in own}
        weights = {
            q: (max(peak, 0.0) ** NUMBERS.peak_power if peak else 1.0) * (1 + float(rarity[q]))
            for q, peak in peaks.items()
        }
        total = sum(weights.values())
        share = [weights.get(q, 0.0) / total if total else 0.0 for q in range(len(of[row]))]
        shares.append(share)
        if not total or not blocks:
            continue
        asking += 1

        def mean(values, share=share) -> float:
            return sum(s * float(v) for s, v in zip(share, values, strict=True))

        near = deviations([mean(z[:, n]) for n in blocks])
        heard = deviations([float(said[part, n]) for n in blocks], NUMBERS.clamp)
        weight = [many if windows.within[n] else NUMBERS.words for n in blocks]
        near = [a + w * b for a, w, b in zip(near, weight, heard, strict=True)]
        around = [[m for m in inside[n] if m < size] for n in blocks]
        wide = deviations([mean(z[:, at].amax(1)) for at in around])
        heard = deviations([float(said[part, at].sum()) for at in around], NUMBERS.clamp)
        fits = {
            n: a + many * b for n, a, b in zip(blocks, wide, heard, strict=True) if windows.lined[n]
        }
        best = [
            max((fits[m] for m in holders[n] if m in fits), default=own_fit)
            for n, own_fit in zip(blocks, near, strict=True)
        ]
        both = deviations([a + NUMBERS.context * b for a, b in zip(near, best, strict=True)])
        lines.append([x * (NUMBERS.marked if marked[row, part] else 1.0) for x in both])
        alone.append(deviations(near))
    if not lines:
        return {}, 0.0, shares
    line = [max(scores) for scores in zip(*lines, strict=True)]
    place = line.index(max(line))
    first = [scores[place] for scores in lines].index(line[place])
    null = NUMBERS.null_base + NUMBERS.null_blocks * math.log(max(len(blocks), NUMBERS.few_blocks))
    null += NUMBERS.null_parts * math.log(asking)
    few = len(blocks) < NUMBERS.few_blocks
    certainty = NUMBERS.few_certainty if few else alone[first][place] / null
    return dict(zip(blocks, line, strict=True)), certainty, shares


@pytest.mark.parametrize(
    ("batch", "tokens", "blocks", "parts"),
    [(1, 1, 1, 1), (2, 9, 40, 3), (3, 5, 8, 4), (1, 6, 2, 1)],
)
def test_against_a_loop(batch: int, tokens: int, blocks: int, parts: int) -> None:
    torch.manual_seed(blocks)
    given = parts_of(batch, tokens, blocks, parts)
    found = part_scores(*given, NUMBERS)
    for row in range(batch):
        line, certainty, shares = loop(given, row)
        want = torch.full((blocks,), -math.inf, dtype=torch.float64)
        want[list(line)] = torch.tensor(list(line.values()), dtype=torch.float64)
        assert_close("line", found.line[row], want, 1e-4, 1e-4)
        assert_close("shares", found.shares[row], torch.tensor(shares), 1e-5, 1e-5)
        assert float(found.certainty[row]) == pytest.approx(certainty, abs=1e-4)


def test_who_sees_or_asks_nothing_finds_nothing() -> None:
    torch.manual_seed(0)
    given = parts_of(2, 5, 20, 3)
    given[1][0], given[2][1] = False, -1
    found = part_scores(*given, NUMBERS)
    assert (found.line == -math.inf).all() and (found.certainty == 0).all()
    assert not found.winner.any() and not found.shares[1].any()


def test_blocks_that_fit_alike_are_all_found() -> None:
    torch.manual_seed(0)
    given = parts_of(1, 5, 3, 2)
    same, words = torch.zeros_like(given[0]), given[4]
    words = words._replace(scores=torch.ones_like(words.scores))
    found = part_scores(same, *given[1:4], words, given[5], NUMBERS)
    assert (found.line[given[1]] == 0).all() and (found.certainty > 0).all()


def arguments() -> tuple:
    z, seen, of, marked, words, windows = parts_of(2, 7, 20, 3)
    out = torch.zeros(2, 20), torch.zeros(2, 20, dtype=torch.int64), torch.zeros(2, 3, 7)
    # Weights, totals and lines are the kernels' own, and written by nothing else.
    room = torch.zeros(2, 7), torch.zeros(2, 3), torch.zeros(2, 3, 3, 20)
    return z, seen, of, marked, *words, *windows, *NUMBERS, *room, *out, torch.zeros(2)


def test_opcheck() -> None:
    torch.library.opcheck(part_scores_, arguments())


def test_full_graph() -> None:
    given = parts_of(2, 7, 20, 3)
    torch._dynamo.reset()
    compiled = torch.compile(part_scores, fullgraph=True, backend="aot_eager")
    have, want = (call(*given, NUMBERS) for call in (compiled, part_scores))
    assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))


def test_bad_input_is_named() -> None:
    given = parts_of(2, 7, 20, 3)
    with pytest.raises(TypeError, match=r"of: dtype torch\.int64"):
        part_scores(*given[:2], given[2].int(), *given[3:], NUMBERS)
    with pytest.raises(ValueError, match=r"peak_power: 0 to 2 expected, got 3"):
        part_scores(*given, NUMBERS._replace(peak_power=3))
    with pytest.raises(ValueError, match=r"clamp: a number above 0 expected, got 0"):
        part_scores(*given, NUMBERS._replace(clamp=0.0))
    with pytest.raises(ValueError, match=r"z: one block at least expected, got none"):
        part_scores(*parts_of(2, 7, 0, 3), NUMBERS)
