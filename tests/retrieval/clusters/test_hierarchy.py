"""Search by clusters: what the exact search finds, of no other session, whatever comes and goes."""

from __future__ import annotations

import builtins

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cmr.kernels.reference.select import Rule
from cmr.kernels.select import maxsim_select
from cmr.memory.batch import BlockBatch
from cmr.retrieval.ask import columns_of
from cmr.retrieval.clusters.hierarchy import MemoryHierarchy
from cmr.retrieval.selection import TUNED
from tests.memory.kept import KeptStore

HIDDEN, K = 24, 4
RULE: Rule = TUNED._replace(threshold=0.0)


def ring_of(slots: int, block: int = 4) -> KeptStore:
    return KeptStore(
        slots=slots,
        block_size=block,
        hidden=HIDDEN,
        layers={},
        index_dtype=torch.float32,
        device=torch.device("cpu"),
    )


def write(ring: KeptStore, sessions: list[int], states: torch.Tensor, pad: int = 0) -> None:
    """One block a session entry; `states` [blocks, block, hidden]; the last `pad` are padding."""
    tokens = states.shape[0] * states.shape[1]
    places = torch.arange(tokens)[None].clone()
    if pad:
        places[:, -pad:] = -1
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    ring.write(BlockBatch(sessions, ids, places, states.reshape(1, tokens, HIDDEN), {}))


def themes(blocks: int, block: int = 4, of: int = 40) -> torch.Tensor:
    """Vectors about some centres, as states are."""
    centres = torch.randn(of, HIDDEN)
    which = torch.randint(of, (blocks, block))
    return centres[which] + 0.5 * torch.randn(blocks, block, HIDDEN)


def exactly(ring: KeptStore, query: torch.Tensor, sessions: torch.Tensor):
    size = ring.high_water
    maxima = ring.maxima(F.normalize(query, dim=-1), sessions, 0, size)
    return maxsim_select(maxima, None, columns_of(ring, size), sessions, None, RULE, K)


def hierarchy(**more) -> MemoryHierarchy:
    return MemoryHierarchy(**{"exact_below": 64, "background": False, "sample": 256, **more})


def overlap(ring: KeptStore, near: MemoryHierarchy, asked: int = 24) -> float:
    shares = []
    for _ in range(asked):
        at = int(torch.randint(ring.high_water, ()))
        query = ring.index[at : at + 1] + 0.2 * torch.randn(1, ring.block_size, HIDDEN)
        sessions = ring.session[at : at + 1]
        true = exactly(ring, query, sessions).starts[0].tolist()
        found = near.search(ring, query, None, sessions, RULE, K).starts[0].tolist()
        shares.append(len(set(true) & set(found)) / K)
    return sum(shares) / len(shares)


def test_few_blocks_are_compared_exactly_and_scored_as_the_exact_search_scores():
    ring = ring_of(60)
    write(ring, [0] * 30 + [1] * 30, themes(60), pad=2)
    near, sessions = hierarchy(), torch.tensor([0, 1, 7])
    query = torch.randn(3, 5, HIDDEN)
    true = exactly(ring, query, sessions)
    found = near.search(ring, query, None, sessions, RULE, K)
    assert near.clusters == 0  # the path: no clusters for so few
    assert torch.equal(found.starts, true.starts)
    torch.testing.assert_close(found.scores, true.scores)
    assert (found.starts[2] == -1).all()


def test_clusters_find_what_the_exact_search_finds():
    ring = ring_of(1200)
    write(ring, [0] * 1200, themes(1200))
    near = hierarchy(probes=8, second=300, third=96)
    assert overlap(ring, near) >= 0.85
    assert near.clusters > 1
    assert near.shortlist(ring, ring.index[:1], None, torch.tensor([0]), RULE).slots.shape[1] < 500


def test_after_half_was_replaced_it_finds_the_new_and_rebuilds_by_itself():
    ring = ring_of(1200)
    write(ring, [0] * 1200, themes(1200))
    near = hierarchy(probes=8, second=300, third=96, drift=0.4)
    near.sync(ring)
    assert near.rebuilds == 1
    write(ring, [0] * 200, themes(200))
    near.sync(ring)
    assert near.rebuilds == 1
    write(ring, [0] * 400, themes(400))
    near.sync(ring)
    assert near.rebuilds == 2
    assert overlap(ring, near) >= 0.85


def test_a_block_that_came_after_the_lists_were_sorted_is_found():
    ring = ring_of(1300)
    write(ring, [0] * 1200, themes(1200))
    near = hierarchy()
    near.sync(ring)
    new = torch.randn(1, 4, HIDDEN)
    write(ring, [0], new)
    found = near.search(ring, new, None, torch.tensor([0]), RULE, 2)
    assert 1200 in found.starts[0].tolist() or 1199 in found.starts[0].tolist()
    assert near.rebuilds == 1


def test_single_entries_are_found_among_many_by_their_cosine():
    ring = ring_of(3000, block=1)
    write(ring, [0] * 3000, themes(3000, 1))
    near = hierarchy(probes=1, second=128)
    rule = RULE._replace(passage=1, clamp=1e9)
    right = 0.0
    for at in range(0, 3000, 150):
        query = ring.index[at : at + 1] + 0.1 * torch.randn(1, 1, HIDDEN)
        cosine = F.normalize(query[0], dim=-1) @ ring.index[:, 0].t()
        found = near.search(ring, query, None, torch.tensor([0]), rule, K).starts[0]
        right += len(set(found.tolist()) & set(cosine[0].topk(K).indices.tolist())) / K / 20
    assert right >= 0.95


def test_the_same_seed_gives_the_same_clusters_and_candidates():
    ring = ring_of(600)
    write(ring, [0] * 600, themes(600))
    query, sessions = torch.randn(1, 6, HIDDEN), torch.tensor([0])
    one, two = (hierarchy().shortlist(ring, query, None, sessions, RULE) for _ in range(2))
    assert torch.equal(one.slots, two.slots)
    assert torch.equal(one.deviation, two.deviation)


def test_moments_are_close_to_those_over_all_blocks():
    ring = ring_of(1200)
    write(ring, [0] * 1200, themes(1200))
    query, sessions = F.normalize(themes(1)[:, :4], dim=-1), torch.tensor([0])
    found = hierarchy(sample=400).shortlist(ring, query, None, sessions, RULE)
    deviation, mean = torch.std_mean(ring.maxima(query, sessions, 0, 1200), -1, correction=0)
    assert ((found.mean - mean) / deviation).abs().max() < 0.15
    assert (found.deviation / deviation - 1).abs().max() < 0.15


def test_what_may_not_be_seen_is_no_candidate():
    ring = ring_of(600)
    write(ring, [0] * 600, themes(600))
    visible = torch.zeros(1, 600, dtype=torch.bool)
    visible[:, :300] = True
    found = hierarchy().shortlist(
        ring, torch.randn(1, 5, HIDDEN), None, torch.tensor([0]), RULE, visible
    )
    assert found.slots.max() < 300


def test_masked_query_tokens_change_nothing():
    ring = ring_of(600)
    write(ring, [0] * 600, themes(600))
    near, sessions = hierarchy(), torch.tensor([0])
    query = torch.randn(1, 6, HIDDEN)
    other = torch.cat([query, torch.randn(1, 3, HIDDEN)], 1)
    mask = torch.tensor([[True] * 6 + [False] * 3])
    alone = near.search(ring, query, None, sessions, RULE, K)
    masked = near.search(ring, other, mask, sessions, RULE, K)
    assert alone.starts[0, 0] == masked.starts[0, 0]


def test_a_rebuild_in_the_background_is_taken_over_with_what_came_meanwhile():
    ring = ring_of(700)
    write(ring, [0] * 600, themes(600))
    near = hierarchy(background=True)
    near.sync(ring)
    new = torch.randn(1, 4, HIDDEN)
    write(ring, [0], new)
    near.close()
    found = near.search(ring, new, None, torch.tensor([0]), RULE, 2)
    assert near.rebuilds == 1
    assert {599, 600} & set(found.starts[0].tolist())


def test_what_fails_in_the_background_is_raised_by_the_next_search(monkeypatch):
    ring = ring_of(200)
    write(ring, [0] * 200, themes(200))
    near = hierarchy(background=True)

    def fail(*_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(near, "_build", fail)
    near.sync(ring)
    near._thread.join()
    with pytest.raises(RuntimeError, match="no room"):
        near.sync(ring)
    near.close()


@settings(max_examples=12, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["write", "forget", "hand"]), st.integers(0, 3)), max_size=8
    ),
    tokens=st.sampled_from([1, 5]),
)
def test_no_slot_of_another_session_is_ever_a_candidate(steps, tokens):
    torch.manual_seed(0)
    ring = ring_of(160)
    near = hierarchy(exact_below=24, max_clusters=16, sample=16, probes=16, second=20, third=8)
    write(ring, [0] * 60 + [1] * 50 + [2] * 30, themes(140))
    near.sync(ring)
    assert near.clusters
    for step, session in steps:
        if step == "write":
            write(ring, [session] * 40, themes(40))
        elif step == "forget":
            ring.clear(session)
        else:
            ring.hand_over(ring.ledger.slots_of(session), (session + 1) % 4, 0)
        sessions = torch.tensor([0, 1, 2, 3, -1])
        query = F.normalize(torch.randn(5, tokens, HIDDEN), dim=-1)
        rule = RULE._replace(passage=1 if tokens == 1 else 2)
        found = near.shortlist(ring, query, None, sessions, rule)
        for row, session in enumerate(sessions.tolist()):
            slots = found.slots[row][found.slots[row] >= 0]
            assert (ring.session[slots] == session).all()
            assert session >= 0 or not len(slots)
            assert len(slots.unique()) == len(slots)
            assert bool(len(slots)) == bool(ring.blocks_of(session))
    near.close()


def test_nothing_is_kept_of_what_is_forgotten():
    ring = ring_of(600)
    write(ring, [0] * 400 + [1] * 200, themes(600))
    near = hierarchy()
    query = torch.randn(1, 5, HIDDEN)
    for session in (0, 1):
        near.shortlist(ring, query, None, torch.tensor([session]), RULE)
    assert near._samples[0].nbytes
    ring.clear(0)
    near.sync(ring)
    assert not near._samples[0].nbytes
    assert near._samples[1].nbytes
    assert not near._codes._codes[near._codes._rows_of(torch.arange(400))].any()
    assert near._codes._codes[near._codes._rows_of(torch.arange(400, 600))].any()


def test_an_empty_store_finds_nothing():
    found = hierarchy().search(
        ring_of(10), torch.randn(1, 3, HIDDEN), None, torch.tensor([0]), RULE, K
    )
    assert (found.starts == -1).all()


@pytest.mark.parametrize("name", ["max_clusters", "exact_below", "sample", "probes", "third"])
def test_a_number_out_of_range_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: 1 or more expected, got 0"):
        MemoryHierarchy(**{name: 0})


def test_a_query_of_another_width_is_refused_before_any_work():
    ring = ring_of(10)
    with pytest.raises(ValueError, match=rf"hidden={HIDDEN}\] expected, got \[1, 3, 8\]"):
        hierarchy().shortlist(ring, torch.randn(1, 3, 8), None, torch.tensor([0]), RULE)


def test_without_faiss_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **more):
        if name == "faiss":
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"cmr\[cpu\]"):
        MemoryHierarchy()


def test_a_gpu_without_faiss_for_it_is_refused():
    faiss = pytest.importorskip("faiss")
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this FAISS knows GPUs")
    with pytest.raises(RuntimeError, match="GPU support expected"):
        MemoryHierarchy(device="cuda")
