"""`cmr.calibrate`: what it chooses, what it saves and finds again, and that it leaves no trace.

The tiny decoders are random: of them only shapes, wiring and repetition are held here. That a
calibration finds more on a real model is a measurement and not a test.
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

import pytest
import torch

import cmr
from cmr.errors import AttachError, ConfigError, UnsupportedModelError
from cmr.integration.calibration import calibrate as calibrating
from cmr.integration.calibration import files as calibrations
from cmr.integration.calibration.calibrate import calibrate
from cmr.integration.calibration.facts import FACTS, chunks, ordinary_text
from cmr.integration.calibration.files import identity
from cmr.integration.calibration.measures import (
    BLOCK,
    Passages,
    block_maxima,
    null,
    rows_of,
    spectrum,
    whitening,
)
from cmr.integration.calibration.run import Run, Trial
from cmr.integration.calibration.states import LayerStates, plant, question, read, running
from cmr.integration.decoder.adapter import ModelAdapter
from cmr.retrieval.calibration import Calibration
from tests.integration import tiny

WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by")


class Letters:
    """A tokenizer of three letters a token, with the little that a calibration asks of one."""

    chat_template = None

    def __call__(self, text: str, add_special_tokens: bool = True, **_: object) -> dict:
        said = text.encode()
        ids = [
            3 + int.from_bytes(said[at : at + 3], "big") % (tiny.VOCABULARY - 3)
            for at in range(0, len(said), 3)
        ]
        return {"input_ids": [1, *ids] if add_special_tokens else ids}


class Chatting(Letters):
    """The same with a chat template."""

    chat_template = "[user] ... [end]"

    def apply_chat_template(self, turns: list[dict], **_: object) -> str:
        said = "".join(f"[{turn['role']}] {turn['content']} [end]" for turn in turns)
        return said + "[assistant] "


def prose(paragraphs: int = 90) -> str:
    rng = random.Random(3)
    return "\n\n".join(" ".join(rng.choices(WORDS, k=24)) + "." for _ in range(paragraphs))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CMR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def few_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen of random weights says nothing: eight facts show as much as all."""
    monkeypatch.setattr(calibrating, "FACTS", FACTS[:8])


@pytest.fixture(scope="module")
def model():
    return tiny.build("llama")


def run(model, **more) -> Calibration:
    settings = {"text": prose(), "layers": (1, 3), "widths": (None, 16), **more}
    return calibrate(model, Letters(), **settings)


@pytest.mark.parametrize("family", [*tiny.FAMILIES, *tiny.SLIDING])
def test_every_family_is_measured_and_found_again(family: str, cache: Path) -> None:
    model = tiny.build(family)
    found = run(model, name="org/tiny model")
    tried = [(row["layer"], row["width"]) for row in found.measured["candidates"]]
    assert tried == [(1, None), (1, 16), (3, None), (3, 16)]
    width = None if found.projection is None else found.projection.shape[1]
    assert (found.index_layer, width) in tried and found.width(64) == (width or 64)
    assert all(0 <= layer <= found.index_layer and 0 <= head < 4 for layer, head in found.heads)
    assert [p.name for p in (cache / "calibrations").iterdir()] == [
        f"tiny-model-{found.identity[:12]}.safetensors"
    ]
    again = calibrations.find(ModelAdapter(model))
    assert again is not None and again.digest == found.digest
    assert (again.question_null, again.measured) == (found.question_null, found.measured)


def test_two_runs_measure_the_same(model) -> None:
    one, other = run(model, save=False), run(model, save=False)
    assert one.measured == other.measured and one.digest == other.digest
    assert (one.question_null, one.text_null) == (other.question_null, other.text_null)


def test_nothing_is_saved_where_not_asked_for(model, cache: Path) -> None:
    run(model, save=False, layers=(2,), widths=(None,))
    assert not cache.exists()


def test_the_model_is_left_as_it_was(model) -> None:
    model.train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    try:
        run(model, layers=(2,), widths=(16,))
        assert [module.training for module in model.modules()] == before
    finally:
        model.eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_progress_ends_with_all_of_it(model) -> None:
    told: list[tuple[int, int]] = []
    run(model, save=False, layers=(2,), widths=(None,), progress=lambda *now: told.append(now))
    assert told[-1][0] == told[-1][1] and sorted(told) == told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (1, 6)}, r"index_layer must be 0\.\.5 on this model, got 6"),
        ({"layers": ()}, "at least one layer"),
        ({"widths": (64,)}, "width of 1 to 63 expected .* got 64"),
        ({"widths": (0,)}, "got 0"),
        ({"widths": ()}, "at least one width"),
        ({"text": prose(4)}, r"a text of 2048 tokens in 9 pieces expected .* got \d+ tokens"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, cache: Path, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(model, **change)
    assert not cache.exists()


def test_a_model_with_a_memory_no_model_and_no_tokenizer_are_refused(model) -> None:
    with cmr.attach(model, window=64), pytest.raises(AttachError, match="detach"):
        run(model)
    with pytest.raises(UnsupportedModelError):
        calibrate(torch.nn.Linear(2, 2), Letters())
    with pytest.raises(ConfigError, match="tokenizer expected, got NoneType"):
        calibrate(model, None)


def test_only_the_question_asks() -> None:
    letters, text = Letters(), "Who sings??!"
    asked = question(Chatting(), text)
    said = [token for token, asks in zip(asked.ids, asked.asks, strict=True) if asks]
    assert said == letters(text, add_special_tokens=False)["input_ids"]
    plain = question(letters, text)
    assert plain.asks == [False, *[True] * 4]


def test_states_are_those_of_the_model_in_its_windows(model) -> None:
    adapter = ModelAdapter(model)
    planted = plant(Letters(), [tiny.text(450, seed=n).tolist() for n in range(3)], FACTS[:2])
    prompts = [question(Letters(), "Who?"), running(Letters(), prose(4))]
    with torch.no_grad():
        found = read(adapter, planted, prompts, [0, 4])
        ids = planted.ids
        whole = model(ids[None, :384], output_hidden_states=True).hidden_states
        later = model(ids[None, 640:1152], output_hidden_states=True).hidden_states
        asked = model(torch.tensor([prompts[1].ids]), output_hidden_states=True).hidden_states
    assert len(ids) > 1152
    for layer, held in found.items():
        back = held.text.float() * held.text_norms[:, None]
        torch.testing.assert_close(back[1:384], whole[layer][0, 1:], atol=5e-3, rtol=1e-2)
        torch.testing.assert_close(back[768:1152], later[layer][0, 128:], atol=5e-3, rtol=1e-2)
        assert not held.text[0].any()
        last = held.prompts[-64:].float() * held.prompt_norms[-64:, None]
        torch.testing.assert_close(last, asked[layer][0, -64:], atol=5e-3, rtol=1e-2)


def test_queries_and_keys_give_the_models_own_attention(model) -> None:
    """At position 0 nothing is rotated: the product is the logit that the model computes."""
    for family in ("qwen3", "gpt2", "llama"):
        decoder = tiny.build(family)
        decoder.set_attn_implementation("eager")
        adapter = ModelAdapter(decoder)
        ids = tiny.text(1, 7)
        with torch.no_grad():
            out = decoder(
                ids,
                position_ids=torch.zeros_like(ids),
                output_attentions=True,
                output_hidden_states=True,
            )
            states = out.hidden_states[2]
            keys, _ = adapter.keys_values(2, states)
            keys = keys.repeat_interleave(adapter.heads // adapter.kv_heads, dim=1)
            logits = adapter.queries(2, states) @ keys.mT / adapter.head_dim**0.5
        causal = torch.ones(7, 7).tril().bool()
        expected = logits.masked_fill(~causal, -torch.inf).softmax(-1)
        torch.testing.assert_close(out.attentions[2], expected, atol=1e-5, rtol=1e-4)


# -- what is chosen ------------------------------------------------------------------------------


def states_of(tokens: torch.Tensor, asked: torch.Tensor) -> LayerStates:
    unit = torch.nn.functional.normalize
    return LayerStates(
        unit(tokens, dim=-1).half(), tokens.norm(dim=-1), unit(asked, dim=-1).half(), asked[:, 0]
    )


def test_whitening_finds_what_a_common_direction_hides() -> None:
    """Two directions rule every cosine; what a fact and its question share is small beside them."""
    torch.manual_seed(1)
    facts, hidden, blocks = 12, 48, 96
    common = torch.zeros(2, hidden)
    common[0, 0], common[1, 1] = 30.0, 12.0

    def cone(rows: int) -> torch.Tensor:
        return common[0] + torch.randn(rows, 1) * common[1]

    text = cone(blocks * BLOCK) + torch.randn(blocks * BLOCK, hidden)
    spans = [(n * 8 * BLOCK + 40, n * 8 * BLOCK + 56) for n in range(facts)]
    meant = torch.randn(facts, 4, hidden)
    meant[..., :2] = 0
    for (start, _), said in zip(spans, meant, strict=True):
        text[start : start + 4] += said
    asked = (cone(facts * 4) + meant.flatten(0, 1)) + torch.randn(facts * 4, hidden) * 0.6
    states, passages = states_of(text, asked), Passages(len(text), spans, torch.device("cpu"))
    mean, values, vectors = spectrum(states.text)
    ranks = {}
    for width in (None, 16, 40):
        projection = None if width is None else whitening(values, vectors, width)
        fitted = Calibration("", "", 0, None if width is None else mean, projection)
        maxima = block_maxima(fitted.index(states.prompts), fitted.index(states.text))
        rows, mask = rows_of(maxima, [4] * facts)
        line = passages.line(rows, mask, torch.ones(facts, blocks, dtype=torch.bool), 1)
        ranks[width] = float(passages.reciprocal_ranks(line, torch.arange(facts)).mean())
    assert ranks[40] > 0.9 and ranks[None] < 0.7


def test_whitened_text_varies_alike_in_all_directions() -> None:
    states = torch.randn(4_000, 12) * torch.linspace(0.1, 3, 12) + 2
    mean, values, vectors = spectrum(states)
    found = (states - mean) @ whitening(values, vectors, 6)
    kept = values[:6]
    expected = torch.diag(kept / (kept + 0.1 * kept.mean()))
    torch.testing.assert_close(found.T @ found / len(found), expected, atol=1e-3, rtol=1e-3)
    assert values[0] >= values[5] and (mean - states.mean(0)).abs().max() < 1e-5


def test_ties_within_the_noise_go_to_the_smaller_index(model) -> None:
    planted = plant(Letters(), [[5] * 300] * 9, FACTS[:8])
    chooser = Run(ModelAdapter(model), Letters(), planted, FACTS[:8], 0)
    torch.manual_seed(0)
    good = torch.rand(24) * 0.2 + 0.8
    near, bad = good.clone(), good - 0.3
    near[0] -= 0.1
    near[3] += 0.08
    wide, narrow = Trial(3, None, good), Trial(5, 16, near)
    assert chooser.choose([wide, narrow, Trial(1, 8, bad)]).width == 16
    assert chooser.choose([wide, Trial(1, 8, bad)]).layer == 3
    # A layer whose neighbours find little was lucky.
    lucky = [Trial(5, 16, bad), Trial(6, 16, good), Trial(7, 16, bad)]
    alike = [Trial(9, 16, good - 0.1), Trial(10, 16, good - 0.1)]
    assert chooser.choose([*lucky, *alike]).layer == 10


def test_ranks_count_peaks_ahead_of_the_right_passage() -> None:
    passages = Passages(12 * BLOCK, [(5 * BLOCK + 3, 5 * BLOCK + 20)], torch.device("cpu"))
    assert passages.right[0].nonzero()[:, 0].tolist() == [4, 5]
    line = torch.zeros(3, 12)
    line[:, 4] = 2.0
    line[1, 9], line[1, 8] = 3.0, 2.5  # 8 is no peak of its own
    line[2, 6], line[2, 0], line[2, 11] = 9.0, 2.1, 2.2  # 6 lies beside the fact
    found = passages.reciprocal_ranks(line, torch.tensor([0, 0, 0]))
    assert found.tolist() == pytest.approx([1.0, 0.5, 1 / 3])


def test_a_fact_over_an_edge_is_held_by_one_passage() -> None:
    passages = Passages(12 * BLOCK, [(5 * BLOCK + 20, 6 * BLOCK + 4)], torch.device("cpu"))
    assert passages.right[0].nonzero()[:, 0].tolist() == [5]
    assert passages.near[0].nonzero()[:, 0].tolist() == [3, 4, 5, 6, 7]


def test_nulls_grow_with_the_memory_and_see_no_answers() -> None:
    torch.manual_seed(0)
    blocks, rows = 300, 20
    spans = [(n * 14 * BLOCK, n * 14 * BLOCK + 20) for n in range(rows)]
    passages = Passages(blocks * BLOCK, spans, torch.device("cpu"))
    maxima, mask = torch.randn(rows, 6, blocks), torch.ones(rows, 6, dtype=torch.bool)
    answered = maxima + 20.0 * passages.right[:, None]
    found = [
        null(passages, m, mask, 1, torch.Generator().manual_seed(0)) for m in (maxima, answered)
    ]
    base, slope = found[0]
    assert slope > 0.05 and 1.0 < base + slope * 5 < 2.5
    assert found[1] == pytest.approx(found[0], abs=0.1)


# -- the texts -----------------------------------------------------------------------------------


def test_facts_lie_where_they_are_said_to(model) -> None:
    letters, facts = Letters(), FACTS[:5]
    planted = plant(letters, [[9] * 30 for _ in range(20)], facts)
    for fact, (start, stop) in zip(facts, planted.spans, strict=True):
        said = letters(fact.sentence, add_special_tokens=False)["input_ids"]
        assert planted.ids[start:stop].tolist() == said
    background = planted.background()
    assert not background[0] and int((~background).sum()) == 1 + sum(
        stop - start for start, stop in planted.spans
    )


def test_facts_are_not_those_of_the_benchmarks_and_paraphrases_share_little() -> None:
    from benchmarks.texts.facts import KINDS
    from benchmarks.texts.haystack_facts import TOLD
    from benchmarks.texts.words import shared_words

    theirs = [kind.sentence for kind in (*KINDS, *TOLD)]
    for fact in FACTS:
        assert fact.sentence not in theirs
        assert max(shared_words(other, fact.sentence) for other in fact.other) <= 2
        assert shared_words(fact.same, fact.sentence) >= 2, fact.same
    assert len({fact.sentence for fact in FACTS}) == len(FACTS) >= 48


def test_ordinary_text_is_shuffled_by_its_seed_and_as_long_as_asked_for() -> None:
    one, other, same = (ordinary_text(Letters(), 20_000, seed) for seed in (0, 1, 0))
    assert sum(map(len, one)) == sum(map(len, other)) == 20_000
    assert one != other and one == same


def test_chunks_hold_all_paragraphs_in_order() -> None:
    text = "\n\n".join(f"{n} " + "word " * (n % 60) for n in range(200)) + "\n\n" + "x" * 5_000
    found = list(chunks(text, 500))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(len(chunk) <= 1_600 for chunk in found)


# -- identity and where calibrations lie -----------------------------------------------------------


def test_identity_is_of_the_weights_whatever_their_dtype(model) -> None:
    whole = tiny.build("llama")
    with torch.no_grad():  # some that float16 has no digits for
        whole.get_input_embeddings().weight[5] = torch.linspace(1e-8, 1e-4, 64)
    wanted = identity(ModelAdapter(whole.to(torch.bfloat16)))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert identity(ModelAdapter(copy.deepcopy(whole).to(dtype))) == wanted
    assert identity(ModelAdapter(tiny.build("mistral"))) != wanted
    with torch.no_grad():
        whole.get_input_embeddings().weight.mul_(1.1)
    assert identity(ModelAdapter(whole)) != wanted


def test_the_users_own_calibration_goes_before_the_shipped_one(
    model, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrations, "SHIPPED", tmp_path / "shipped")
    adapter = ModelAdapter(model)
    assert calibrations.find(adapter) is None
    known = Calibration("tiny", identity(adapter), 2)
    name = calibrations.file_name(known)
    known.save(tmp_path / "shipped" / name)
    assert calibrations.find(adapter).index_layer == 2
    Calibration("tiny", identity(adapter), 3).save(calibrations.folder() / name)
    assert calibrations.find(adapter).index_layer == 3
    assert calibrations.find(ModelAdapter(tiny.build("qwen3"))) is None


def test_a_damaged_calibration_and_one_of_other_weights_are_passed_over(
    model, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(calibrations, "SHIPPED", tmp_path / "shipped")
    adapter = ModelAdapter(model)
    known = Calibration("tiny", identity(adapter), 2)
    calibrations.folder().mkdir(parents=True)
    (calibrations.folder() / calibrations.file_name(known)).write_bytes(b"no tensors")
    others = Calibration("a", known.identity[:12] + "0" * 52, 4)
    others.save(calibrations.folder() / calibrations.file_name(others))
    assert calibrations.find(adapter) is None
    assert "a file of cmr.calibrate expected" in caplog.text


def test_the_small_model_comes_with_a_calibration(smollm2) -> None:
    found = calibrations.find(ModelAdapter(smollm2[0]))
    assert found is not None and found.model == "SmolLM2-135M-Instruct"
    states = torch.randn(2, 3, 576)
    assert found.index(states).shape == (2, 3, found.width(576))
