"""The choice of passages against the retriever as it was, and against brute force in float64."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cmr.config import RetrievalConfig
from cmr.kernels.maxsim import block_maxima
from cmr.kernels.reference.select import Rule, SearchColumns, block_table, topk_lowest_slot
from cmr.kernels.select import (
    best_passages,
    best_passages_,
    maxsim_select,
    maxsim_select_,
    new_scratch,
    new_selection,
)
from cmr.kernels.standardise import passages, standardise
from tests.kernels.helpers.compare import assert_close
from tests.kernels.helpers.selecting import RULE, columns_of, rows_of


@settings(deadline=None, max_examples=60)
@given(
    blocks=st.sampled_from([0, 1, 2, 13, 200]),
    tokens=st.sampled_from([1, 7]),
    k=st.sampled_from([1, 4, 20]),
    neighbours=st.integers(0, 3),
    passage=st.integers(1, 2),
    power=st.integers(0, 2),
    limited=st.booleans(),
    seed=st.integers(0, 999),
)
def test_matches_brute_force(blocks, tokens, k, neighbours, passage, power, limited, seed) -> None:
    torch.manual_seed(seed)
    columns, sessions = columns_of(blocks, 2, 3), torch.tensor([0, 5, 1])
    maxima, mask = rows_of(3, tokens, blocks)
    before = torch.tensor([blocks, 3, blocks * 3]) if limited else None
    rule = RULE._replace(neighbours=neighbours, passage=passage, peak_power=power)
    have = maxsim_select(maxima, mask, columns, sessions, before, rule, k)
    for row in range(3):
        limit = math.inf if before is None else before[row].item()
        score, starts, certainty, decided = brute(
            maxima[row], mask[row], columns, sessions[row], limit, rule, k
        )
        assume(decided)
        found = (have.starts[row] >= 0).sum().item()
        assert have.starts[row].tolist() == starts + [-1] * (k - found)
        assert_close("scores", have.scores[row][:found], torch.tensor(score), 1e-3, 1e-3)
        assert (have.scores[row][found:] == -math.inf).all()
        assert_close("certainty", have.certainty[row], torch.tensor(certainty), 1e-3, 1e-3)
    stamps = [columns.created[s] if s >= 0 else -1 for s in have.table.flatten()]
    assert have.stamps.flatten().tolist() == stamps
    table = (
        block_table(have.starts, *columns[2:4], length=passage, neighbours=neighbours)
        if blocks
        else have.table
    )
    assert torch.equal(have.table, table)


def brute(maxima, mask, columns: SearchColumns, session, limit, rule: Rule, k: int):
    """One row in float64, candidate by candidate; and whether float32 must decide alike.

    It need not where two numbers that were computed differently come out level: which of them is
    the larger then depends on rounding. Level from the same values is a tie in any precision.
    """
    seen = [
        n
        for n in range(maxima.shape[1])
        if columns.session[n] == session and columns.positions[n].max() < limit
    ]
    if not seen:
        return [], [], 0.0, True
    m = maxima.double()
    z = torch.full_like(m, -rule.clamp)
    spread = m[:, seen].std(-1, correction=0, keepdim=True)
    deviations = (m[:, seen] - m[:, seen].mean(-1, keepdim=True)) / spread
    z[:, seen] = deviations.nan_to_num().clamp(-rule.clamp, rule.clamp) if len(seen) > 1 else 0.0
    after = columns.successor
    if rule.passage == 2:
        z = torch.where(after >= 0, torch.maximum(z, z[:, after.clamp(min=0)]), z)
    weight = z.amax(-1).clamp(min=0) ** rule.peak_power if len(seen) > 1 else torch.ones(len(z))
    weight = weight.double() * mask
    if not weight.sum():
        return [], [], 0.0, True
    line = (weight[:, None] * z).sum(0) / weight.sum()

    def at(n):
        return line[n].item() if n >= 0 else -math.inf

    near, rounding = 1e-9, 1e-5
    beside = [
        (n, m.item())
        for n in seen
        for m in (columns.successor[n], columns.predecessor[n])
        if m >= 0
    ]
    decided = all(abs(at(n) - at(m)) > rounding or torch.equal(z[:, n], z[:, m]) for n, m in beside)
    peaks = [
        n
        for n in seen
        if line[n] >= at(columns.successor[n]) - near
        and line[n] > at(columns.predecessor[n]) + near
    ]
    if not peaks:
        return [], [], 0.0, decided
    chosen: list[int] = []
    while len(chosen) < k and len(chosen) < len(peaks):
        best = None
        for n in sorted(set(peaks) - set(chosen)):
            if best is not None and abs(at(n) - at(best)) < rounding:
                decided &= torch.equal(z[:, n], z[:, best])
            if best is None or at(n) > at(best) + near:
                best = n
        chosen.append(best)
    scores = [at(n) for n in chosen]
    top = line[peaks].max().item()
    few = len(seen) < rule.few_blocks
    null = rule.null_base + rule.null_slope * math.log(len(seen))
    certainty = rule.few_certainty if few else top / null
    decided &= abs(certainty - rule.threshold) > rounding
    decided &= len(seen) < 2 or all(abs(score) > rounding for score in scores)
    kept = [i for i in range(len(chosen)) if scores[i] >= 0]
    kept = kept if certainty >= rule.threshold else []
    return [scores[i] for i in kept], [chosen[i] for i in kept], certainty, decided


@pytest.mark.parametrize("seed", range(6))
def test_it_chooses_what_the_stages_choose(seed: int) -> None:
    """The rule as it was put together from the single operations before."""
    torch.manual_seed(seed)
    blocks, settings_ = 150, RetrievalConfig()
    columns, sessions = columns_of(blocks, 3, 4), torch.tensor([0, 2])
    unit = torch.nn.functional.normalize
    index = unit(torch.randn(blocks, 4, 32), dim=-1)
    query = unit(index[10:12, :3] + 0.1 * torch.randn(2, 3, 32), dim=-1)
    maxima = block_maxima(query, index, columns.positions >= 0)
    visible = columns.session == sessions[:, None]
    z = passages(standardise(maxima, visible), columns.successor)
    weights = z.amax(-1).clamp(min=0) ** 2
    line = torch.bmm((weights / weights.sum(-1, keepdim=True))[:, None], z)[:, 0]
    ends = [columns.successor, columns.predecessor]
    after, before = (line[:, link.clamp(min=0)].masked_fill(link < 0, -math.inf) for link in ends)
    peaks = visible & (line >= after) & (line > before)
    scores, starts = topk_lowest_slot(line.masked_fill(~peaks, -math.inf), settings_.blocks)
    null = 0.70 + 0.18 * visible.sum(-1).log()
    keep = (scores >= 0) & (scores[:, :1] / null[:, None] >= settings_.threshold)
    starts = torch.where(keep & (starts >= 0), starts, -1)
    table = block_table(starts, *ends, length=2, neighbours=settings_.neighbours)
    rule = RULE._replace(threshold=settings_.threshold, neighbours=settings_.neighbours)
    have = maxsim_select(maxima, None, columns, sessions, None, rule, settings_.blocks)
    assert torch.equal(have.table, table) and torch.equal(have.starts, starts)
    assert_close("certainty", have.certainty, scores[:, 0] / null)
    assert (table >= 0).any()


def test_the_operation_traces_and_compiles() -> None:
    columns, (maxima, mask) = columns_of(40, 2, 3), rows_of(2, 3, 40)
    sessions = torch.tensor([0, 1])
    scratch, out = new_scratch(maxima, 2, 3, 40), new_selection(maxima, 4, 4)
    arguments = (maxima, mask, *columns, sessions, None, *RULE)
    torch.library.opcheck(maxsim_select_, (*arguments, *scratch, *out))

    def choose(maxima: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(maxsim_select(maxima, mask, columns, sessions, None, RULE, 4))

    compiled = torch.compile(choose, fullgraph=True, backend="aot_eager")
    for have, want in zip(compiled(maxima), choose(maxima), strict=True):
        assert torch.equal(have, want)


@pytest.mark.parametrize(
    ("change", "k", "message"),
    [
        ({"passage": 3}, 2, "passage: 1 to 2"),
        ({"neighbours": 9}, 2, "neighbours: 0 to 8"),
        ({"clamp": 0.0}, 2, "clamp"),
        ({"peak_power": 3}, 2, "peak_power"),
        ({}, 65, "k: 1 to 64"),
    ],
)
def test_bad_numbers_are_named(change: dict, k: int, message: str) -> None:
    columns, (maxima, mask) = columns_of(9, 1, 3), rows_of(1, 2, 9)
    with pytest.raises(ValueError, match=message):
        maxsim_select(
            maxima, mask, columns, torch.zeros(1).long(), None, RULE._replace(**change), k
        )


@pytest.mark.parametrize("by_line", [False, True])
@pytest.mark.parametrize(("blocks", "k"), [(0, 2), (1, 1), (40, 3), (40, 64)])
def test_best_passages_against_a_loop(blocks: int, k: int, by_line: bool) -> None:
    torch.manual_seed(blocks)
    columns = columns_of(blocks, 2, 2)
    line, base = torch.randn(3, blocks).round(decimals=1), torch.randn(3, blocks).round(decimals=1)
    line -= 1.0  # some of the best by the other fit less than usual
    line[:, ::5] = -math.inf
    seen, certainty = torch.rand(3, blocks) > 0.2, torch.tensor([1.0, 2.0, 0.9])
    given = line, None if by_line else base, seen, certainty, columns, k
    scores, starts = best_passages(*given, 1.0)
    base = line if by_line else base
    for row in range(3):
        # The last one is where the text ends.
        high = [*line[row].masked_fill(~seen[row], -math.inf).tolist(), -math.inf]
        peaks = [
            n
            for n in range(blocks)
            if high[n] > -math.inf
            and high[n] >= high[columns.successor[n]]
            and high[n] > high[columns.predecessor[n]]
        ]
        best = sorted(peaks, key=lambda n, row=row: (-base[row, n].item(), n))[:k]
        wanted = [
            n if certainty[row] >= 1 and (high[n] >= 0 or (place == 0 and not by_line)) else -1
            for place, n in enumerate(best)
        ]
        assert starts[row].tolist() == wanted + [-1] * (k - len(best))
        fitting = [base[row, n].item() if n >= 0 else -math.inf for n in wanted]
        assert scores[row].tolist() == fitting + [-math.inf] * (k - len(best))


def test_best_passages_traces_and_compiles() -> None:
    columns, line, base = columns_of(40, 2, 3), torch.randn(2, 40), torch.randn(2, 40)
    out = torch.empty(2, 4), torch.full((2, 4), 0)
    seen, certainty = torch.rand(2, 40) > 0.2, torch.ones(2)
    torch.library.opcheck(best_passages_, (line, base, seen, certainty, *columns, 0.5, *out))
    torch._dynamo.reset()
    compiled = torch.compile(best_passages, fullgraph=True, backend="aot_eager")
    given = line, None, seen, certainty, columns
    have, want = (call(*given, 4, 0.5) for call in (compiled, best_passages))
    assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))
    with pytest.raises(ValueError, match="k: 1 to 64 expected, got 65"):
        best_passages(*given, 65, 0.5)
