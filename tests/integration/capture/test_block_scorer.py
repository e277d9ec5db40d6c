"""Relevance of what an attached model reads: the right numbers, and nothing else changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import cmr
from cmr.config import SCORING_METHODS
from cmr.integration.capture import piece_scores as scoring
from cmr.integration.capture.block_scorer import BlockScorer
from cmr.integration.capture.piece_scores import Piece
from cmr.integration.capture.rows import Rows
from cmr.memory.token_scores import token_scores
from tests.integration.tiny import VOCABULARY, padded, text
from tests.kernels.helpers.compare import assert_close

SETTINGS: dict[str, Any] = {"window": 128, "left_context": 32, "budget": 2048}
PIECE = 96
METHODS = ("attention_based", "variance_based", "surprise", "gradient_based")


def attach(model: nn.Module, method: str | None, **more: Any) -> cmr.Memory:
    return cmr.attach(model, **{**SETTINGS, "scoring_method": method, **more})


def scorer_of(memory: cmr.Memory) -> BlockScorer:
    return memory._core.scorer


def raw_scores(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[dict[str, torch.Tensor], int]:
    """Every method's raw scores of all tokens, `[batch, tokens]`, and the index layer."""
    found: list[dict[str, torch.Tensor]] = []
    with attach(model, "gradient_based") as memory:
        scorer = scorer_of(memory)
        raw = scorer.raw

        def note(piece: Piece, methods: Any) -> dict[str, torch.Tensor]:
            found.append(raw(piece, METHODS))
            return {name: found[-1][name] for name in methods}

        scorer.raw = note  # type: ignore[method-assign]
        memory.read(ids, mask)
        layer = memory._core.layout.index_layer
    return {name: torch.cat([f[name] for f in found], 1) for name in METHODS}, layer


def stored(memory: cmr.Memory) -> list[torch.Tensor]:
    """All that was stored of texts, in the order of the blocks."""
    ring = memory._core.ring
    order = ring.created.argsort()[-ring.written :]
    tensors = [*ring.keys.values(), *ring.values.values(), ring.index, ring.positions]
    return [tensor[order] for tensor in tensors]


# -- the numbers -----------------------------------------------------------------------------------


def test_surprise_is_the_models_own_loss_across_pieces(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LOGIT_BYTES", 4 * VOCABULARY * 7)  # slices of 7 tokens
    ids = text(1, 128)  # as much as the second piece still sees all of
    raw, _ = raw_scores(model, ids)
    with torch.no_grad():
        logits = model(ids).logits
    losses = functional.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none")
    if model.config.model_type != "gpt2":  # positions of the second piece start again
        assert_close(
            "two pieces", raw["surprise"][0, PIECE : PIECE + 1], losses[0, PIECE - 1 : PIECE]
        )
    assert_close("first piece", raw["surprise"][0, 1:PIECE], losses[0, : PIECE - 1])
    assert raw["surprise"][0, 0] == pytest.approx(float(losses[0, : PIECE - 1].mean()), rel=1e-4)


def test_gradient_is_that_of_the_whole_losses_through_the_model(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "LOGIT_BYTES", 4 * VOCABULARY * 7)
    ids = text(1, PIECE)
    raw, layer = raw_scores(model, ids)
    seen: dict[str, torch.Tensor] = {}

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state = args[0] if args else kwargs["hidden_states"]
        seen["state"] = state.detach().requires_grad_()
        if args:
            return (seen["state"], *args[1:]), kwargs
        return (), {**kwargs, "hidden_states": seen["state"]}

    decoder = model.get_decoder()
    blocks = decoder.h if hasattr(decoder, "h") else decoder.layers
    handle = blocks[layer].register_forward_pre_hook(hook, with_kwargs=True)
    with torch.enable_grad():
        logits = model(ids).logits
        loss = functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, seen["state"])
    handle.remove()
    want = (gradient * seen["state"].detach()).sum(-1).abs()
    assert_close("gradient times state", raw["gradient_based"], want)


def test_attention_is_that_of_the_index_layer(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = model.get_decoder()
    layer = 2  # at a quarter of six
    block = decoder.h[layer] if hasattr(decoder, "h") else decoder.layers[layer]
    attention = block.attn if hasattr(block, "attn") else block.self_attn
    monkeypatch.setattr(attention, "scaling", attention.scaling * 1.5)
    ids = text(1, PIECE)
    raw, index_layer = raw_scores(model, ids)
    assert index_layer == layer
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            weights = model(ids, output_attentions=True).attentions[layer]
    finally:
        model.set_attn_implementation(own)
    content = torch.ones(1, PIECE, dtype=torch.bool)
    content[:, 0] = False  # the sink
    want = token_scores(
        "attention_based", torch.zeros(1, PIECE, 1), content, attention_weights=weights
    )
    assert_close("attention", raw["attention_based"][:, 1:], want[:, 1:], atol=1e-4)
    assert raw["attention_based"][0, 0] == 0


def test_rows_of_a_padded_batch_score_as_each_alone(llama: nn.Module) -> None:
    texts = [text(250, seed=1), text(40, seed=2), text(130, seed=3)]
    for side in ("left", "right"):
        batch = padded(texts, side)
        together, _ = raw_scores(llama, batch["input_ids"], batch["attention_mask"])
        for row, ids in enumerate(texts):
            alone, _ = raw_scores(llama, ids)
            for name in METHODS:
                assert_close(f"{name} {row}", together[name][row, : len(ids)], alone[name][0])


# -- what else a scorer may and may not do ---------------------------------------------------------


@pytest.mark.parametrize("store", ["kv", "states"])
@pytest.mark.parametrize("recall", [False, True])
def test_scoring_changes_no_bit_of_what_is_stored(
    llama: nn.Module, store: str, recall: bool
) -> None:
    ids = text(2, 300)
    mask = torch.ones_like(ids)
    mask[1, 200:] = 0
    with attach(llama, None, store=store, threshold=0.0) as memory:
        memory.read(ids, mask, recall=recall)
        want = [tensor.clone() for tensor in stored(memory)]
    for method in SCORING_METHODS:
        with attach(llama, method, store=store, threshold=0.0) as memory:
            memory.read(ids, mask, recall=recall)
            for have, tensor in zip(stored(memory), want, strict=True):
                assert not have.requires_grad
                if recall and method == "gradient_based":  # memory is woven in differentiably
                    assert_close(method, have, tensor, atol=1e-4)
                else:
                    assert torch.equal(have, tensor), method


def test_only_what_needs_the_head_runs_the_layers_behind_the_stored_ones(
    llama: nn.Module,
) -> None:
    runs: list[int] = []
    handle = llama.model.layers[-1].register_forward_hook(lambda *_: runs.append(1))
    try:
        for method in (None, *SCORING_METHODS):
            runs.clear()
            with attach(llama, method, target_layers=(1, 2, 3)) as memory:
                memory.read(text(200))
            assert len(runs) == (3 if method in ("surprise", "gradient_based") else 0), method
    finally:
        handle.remove()


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_inference_mode_and_gradients_outside_make_no_difference(
    llama: nn.Module, method: str
) -> None:
    found = []
    for mode in (torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
        with attach(llama, method) as memory:
            with mode:
                memory.read(text(200))
                assert torch.is_grad_enabled() == isinstance(mode, torch.enable_grad)
            memory.read(text(50, seed=1))
            found.append(torch.tensor([entry.relevance_score for entry in memory.entries()]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert all(parameter.grad is None for parameter in llama.parameters())


def test_no_graph_outlives_its_piece(llama: nn.Module) -> None:
    alive: list[int] = []
    with attach(llama, "gradient_based") as memory:
        scorer = scorer_of(memory)
        of_piece = scorer.of_piece

        def note(piece: Piece) -> torch.Tensor:
            found = of_piece(piece)
            assert piece.source is not None
            alive.append(0 if piece.before is None else int(piece.before.requires_grad))
            return found

        scorer.of_piece = note  # type: ignore[method-assign]
        caches: list[Any] = []
        handle = llama.model.register_forward_pre_hook(
            lambda _, args, kwargs: caches.append(kwargs["past_key_values"]), with_kwargs=True
        )
        memory.read(text(300))
        handle.remove()
    assert alive == [0] * 4
    assert not any(layer.keys.requires_grad for layer in caches[0].layers)


# -- relevance of blocks ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_relevance_is_stored_with_its_block_and_counted(llama: nn.Module, method: str) -> None:
    given: list[torch.Tensor] = []
    with attach(llama, method) as memory:
        scorer = scorer_of(memory)
        of_piece = scorer.of_piece

        def note(piece: Piece) -> torch.Tensor:
            given.append(of_piece(piece))
            return given[-1]

        scorer.of_piece = note  # type: ignore[method-assign]
        memory.read(text(700))
        kept = [entry.relevance_score for entry in memory.entries()]
        stats = scorer.stats()
    assert kept == torch.cat(given, 1)[0].tolist()
    assert stats["method"] == method and stats["blocks"] == {method: 22}
    assert min(kept) >= 0 and max(kept) <= 1
    assert len(set(kept[3:])) > 5
    assert sum(kept) / len(kept) == pytest.approx(0.5, abs=0.2)


def test_without_a_method_every_block_is_worth_the_same(llama: nn.Module) -> None:
    with attach(llama, None) as memory:
        memory.read(text(200))
        assert {entry.relevance_score for entry in memory.entries()} == {0.5}
        assert scorer_of(memory).stats()["blocks"] == {}
        assert scorer_of(memory).state() == {}


def test_a_surprising_block_is_relevant(llama: nn.Module) -> None:
    """The model's own greedy text is expected by it, a random block in between is not."""
    with torch.no_grad():
        expected = llama.generate(text(1, 4), max_new_tokens=92, do_sample=False)
    ids = expected.clone()
    ids[:, 32:64] = text(1, 32, seed=5)
    with attach(llama, "surprise") as memory:
        memory.read(ids)
        kept = [entry.relevance_score for entry in memory.entries()]
    assert kept.index(max(kept)) == 1


def test_attention_favours_no_place_in_a_piece(llama: nn.Module) -> None:
    with attach(llama, "attention_based", budget=16_384) as memory:
        for seed in range(4):
            memory.read(text(20 * PIECE, seed=seed), sessions=[str(seed)])
        kept = torch.tensor([entry.relevance_score for entry in memory.entries()])
    assert len(kept) == 240
    assert (kept.view(-1, 3).mean(0) - 0.5).abs().max() < 0.12


def test_text_that_leaves_while_generating_has_a_scale_of_its_own(llama: nn.Module) -> None:
    with attach(llama, "surprise", window=64) as memory:
        memory.read(text(300))
        with torch.no_grad():
            llama.generate(text(1, 30), max_new_tokens=120, do_sample=False)
        stats = scorer_of(memory).stats()
    assert stats["blocks"]["surprise"] == 10
    assert stats["blocks"]["variance_based, leaving"] >= 2
    scorer, states = scorer_of(memory), torch.randn(1, 96, 64)
    again = scorer.state()
    found = scorer.of_states(states, 32, [(10, 70)])
    states[:, :10] *= 100  # padding, whatever stands in it
    scorer.load_state(again)
    assert torch.equal(scorer.of_states(states, 32, [(10, 70)]), found)
    assert found.shape == (1, 3) and (found > 0).all()
    assert scorer.of_states(states, 32, [(0, 64)])[0, 2] == 0
    with pytest.raises(ValueError, match="block_size 32 expected, got 16"):
        scorer.of_states(states, 16, [(0, 96)])


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_a_saved_scale_goes_on(llama: nn.Module, method: str) -> None:
    found = []
    with attach(llama, method) as memory:
        memory.read(text(300))
        state = scorer_of(memory).state()
        memory.clear()
        memory.read(text(300, seed=2))
        found.append([entry.relevance_score for entry in memory.entries()])
    with attach(llama, method) as memory:
        scorer_of(memory).load_state(state)
        memory.read(text(300, seed=2))
        found.append([entry.relevance_score for entry in memory.entries()])
        with pytest.raises(ValueError, match="one of read, leaving, places expected, got 'other'"):
            scorer_of(memory).load_state({"other/x": torch.zeros(1)})
        with pytest.raises(ValueError, match="counts: float32"):
            bad = {"places/means": torch.zeros(1), "places/counts": torch.zeros(1, 1)}
            scorer_of(memory).load_state({**state, **bad})
        after = scorer_of(memory).state()
    assert found[0] == found[1]
    assert any(not torch.equal(after[name], tensor) for name, tensor in state.items())


# -- what must not be stored -----------------------------------------------------------------------


def test_keep_is_packed_like_the_ids() -> None:
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    keep = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 0]]).bool()
    rows = Rows.pack(ids, mask, VOCABULARY, keep)
    assert rows.keep is not None
    assert rows.keep.tolist() == [
        [True, False, True, False, False],
        [True, True, True, True, False],
    ]
    assert Rows.pack(ids, mask, VOCABULARY).keep is None
    assert Rows.pack(ids[0], None, VOCABULARY, keep[0]).keep.shape == (1, 5)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        (torch.ones(2, 5), TypeError, "keep must be a bool tensor, .* got torch.float32"),
        (torch.ones(2, 4).bool(), ValueError, r"keep must have the shape .*\(2, 5\), got \(2, 4\)"),
        ([True], TypeError, "keep must be a tensor or None, got list"),
    ],
)
def test_a_mask_that_could_be_misread_is_refused(
    keep: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Rows.pack(torch.ones(2, 5).long(), None, VOCABULARY, keep)


@pytest.mark.parametrize("method", SCORING_METHODS)
def test_what_is_opted_out_is_not_stored_and_counts_for_no_relevance(
    llama: nn.Module, method: str
) -> None:
    ids = text(1, 192)
    keep = torch.ones_like(ids, dtype=torch.bool)
    keep[:, 32:64] = False
    keep[:, 100:110] = False
    with attach(llama, method) as memory:
        memory.read(ids, keep=keep)
        held = [token for entry in memory.entries() for token in entry.token_ids]
        stats = scorer_of(memory).stats()
        assert held == ids[keep].tolist()
        assert stats["blocks"] == {method: 5}
        assert len(memory.entries()) == 5
