"""Steps that are recorded once and replayed: what they say, and what was searched and left between.

No GPU runs: the emulated device records each operation of a step with the tensors and numbers that
it was given, and runs these again, without a line of Python of the library.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import cmr
from cmr.errors import AttachError, ConfigError
from cmr.integration.files.settings import to_header
from cmr.integration.hooks import graph
from tests.emulated.decoding import LAYERS, SETTINGS, Decoding, llama, some_text
from tests.emulated.device import DEVICE, Device, Recorded, moved
from tests.integration.tiny import READS_ALL, build, text

STEPS = 36
DECODING: dict[str, Any] = {**SETTINGS, "window": 48, "refresh": 16, "memory_weight": 0.5}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """The emulated device, which plays CUDA graphs, too."""
    with torch.no_grad(), Device().running() as running:
        monkeypatch.setattr(graph, "record", lambda body, _: Recorded(running, body))
        yield running


@pytest.fixture
def model(device: Device) -> nn.Module:
    return moved(llama().float())


def attached(model: nn.Module, sessions: int = 1, **settings: Any) -> cmr.Memory:
    """A memory in which each session has a text of 400 tokens."""
    memory = cmr.attach(model, **{**DECODING, **settings})
    for row in range(sessions):
        memory.read(some_text(400, seed=20 + row), sessions=[str(row)])
    return memory


def decoded(run: Decoding, steps: int = STEPS) -> torch.Tensor:
    """Logits of so many steps."""
    said = []
    for _ in range(steps):
        run.step()
        said.append(run.logits)
    return torch.cat(said).cpu()


def both(model: nn.Module, act: Callable[[cmr.Memory], Any], **settings: Any) -> tuple[Any, ...]:
    """What `act` gives without graphs and with them, and what is counted of these."""
    found = []
    for graphs in (False, True):
        with attached(model, graphs=graphs, **settings) as memory:
            found += [act(memory), memory.stats()]
    return found[0], found[2], found[1], found[3]


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_replayed_step_says_what_a_plain_one_says(device: Device, model: nn.Module) -> None:
    """Blocks leave and searches run in between; what they change is read in place."""
    plain, replayed, before, stats = both(
        model, lambda memory: decoded(Decoding(device, model), 70)
    )
    assert stats["graphs"] == {
        "captured": 1, "replayed": 69, "rows": [1], "bytes": stats["graphs"]["bytes"], "plain": {}
    }  # fmt: skip
    close(replayed, plain)
    for name in ("tokens", "searches", "recalls", "written_blocks"):
        assert stats[name] == before[name], name
    assert stats["searches"] > 3 and stats["tokens"] > 400, "nothing happened in between"


def test_a_replay_counts_few_operations(device: Device, model: nn.Module) -> None:
    """What the host still launches one by one: inputs, the replay's results, and the head."""
    with attached(model, graphs=True):
        run = Decoding(device, model)
        counts = [run.step() for _ in range(12)]
    last = counts[-1]
    assert last.waited == 0 and last.launched <= 11, last.operations
    assert counts[0].launched > 5 * last.launched


def test_memory_is_read_in_a_replay(device: Device, model: nn.Module) -> None:
    def act(memory: cmr.Memory) -> torch.Tensor:
        said = decoded(Decoding(device, model))
        assert memory.recalled[0][0].gate > 0.01
        return said

    found = both(model, act)
    with attached(model, graphs=True, blocks=0) as memory:
        without = decoded(Decoding(device, model))
        assert memory.stats()["graphs"]["replayed"] == STEPS - 1
    close(found[1], found[0])
    assert float((without - found[0]).abs().max()) > 0.05


def padded_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of 40, 27 and 12 tokens."""
    ids = torch.cat([some_text(40, seed=5 + row) for row in range(3)])
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 13, 28)):
        ids[row, :padding] = mask[row, :padding] = 0
    return ids.to(DEVICE), mask.to(DEVICE)


@pytest.mark.parametrize("way", [{}, {"num_beams": 2}], ids=str)
def test_generate_with_padded_rows(model: nn.Module, way: dict[str, Any]) -> None:
    ids, mask = padded_rows()

    def act(memory: cmr.Memory) -> torch.Tensor:
        said = model.generate(
            ids, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, **way
        )
        return said.cpu()

    plain, replayed, before, stats = both(model, act, sessions=3)
    assert plain.equal(replayed), "other tokens"
    assert stats["graphs"]["replayed"] == STEPS - 2 and not stats["graphs"]["plain"]
    assert stats["written_blocks"] == before["written_blocks"] > 39


def test_two_caches_take_turns(device: Device, model: nn.Module) -> None:
    def act(memory: cmr.Memory) -> torch.Tensor:
        runs = [Decoding(device, model, seed=1), Decoding(device, model, seed=2)]
        return torch.cat([decoded(runs[turn % 2], 1 + turn % 3) for turn in range(24)])

    plain, replayed, _, stats = both(model, act)
    close(replayed, plain)
    assert stats["graphs"]["captured"] == 1 and stats["graphs"]["rows"] == [1]


def test_what_is_done_to_a_cache_in_between(device: Device, model: nn.Module) -> None:
    """A copy goes on by itself, tokens are taken back, and several come at once."""

    def act(memory: cmr.Memory) -> torch.Tensor:
        run = Decoding(device, model)
        said = [decoded(run, 8)]
        other = copy.copy(run)
        other.cache = copy.deepcopy(run.cache)
        said += [decoded(run, 5), decoded(other, 9)]
        run.cache.crop(-3)
        said.append(decoded(run, 4))
        kept = [layer.keys.clone() for layer in run.cache.layers]
        run._next = some_text(7, seed=9).to(DEVICE)
        said += [decoded(run, 6), decoded(other, 3)]
        held = kept[0].shape[2]
        assert all(
            layer.keys[:, :, :held].cpu().equal(before.cpu())
            for layer, before in zip(run.cache.layers, kept, strict=True)
        )
        return torch.cat(said)

    plain, replayed, _, stats = both(model, act)
    close(replayed, plain)
    assert stats["graphs"]["replayed"] > 30


def test_what_layers_look_at_less(device: Device, model: nn.Module) -> None:
    """As long as the window holds all of the text, see `Aside`."""

    def act(memory: cmr.Memory, less: bool = True) -> torch.Tensor:
        run = Decoding(device, model)
        search = run.cache.layers[0].owner.record.search
        if less:
            search.aside, search.asked_at = torch.full((1, 30), -4.0, device=DEVICE), 37
        return decoded(run, 30)

    plain, replayed, _, stats = both(model, act, refresh=64)
    close(replayed, plain)
    assert stats["graphs"]["replayed"] == 29
    with attached(model, refresh=64) as memory:
        assert float((act(memory, less=False) - plain).abs().max()) > 0.01


ASKING = {"falcon"}
"""Its attention takes heads apart by a list of the host, for which the host waits."""
FAMILIES = (
    "mistral", "gemma3", "gpt2", "gemma2", "phi3", "smollm3", "ministral3", "falcon",
    "falcon_heads",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(device: Device, family: str) -> None:
    model = moved(build(family))
    depth = model.config.num_hidden_layers
    settings = {**READS_ALL, "target_layers": [*range(2, depth)], "store": "kv"}
    said = []
    for graphs in (False, True):
        with cmr.attach(model, **settings, window=40, refresh=8, graphs=graphs) as memory:
            memory.read(text(200).to(DEVICE))
            run = Decoding(device, model, prompt=text(30, seed=4)[None])
            said.append(decoded(run, 14))
            if graphs:
                found = memory.stats()["graphs"]
                assert found["replayed"] == (0 if family in ASKING else 13), found
    close(said[1], said[0])


# -- what is not replayed --------------------------------------------------------------------------


def hooked(model: nn.Module) -> Callable[[], object]:
    return model.model.layers[1].mlp.register_forward_hook(lambda *_: None).remove


def replaced(model: nn.Module) -> Callable[[], object]:
    layer = model.model.layers[1]
    layer.forward = layer.forward
    return lambda: delattr(layer, "forward")


def asked(model: nn.Module) -> Callable[[], object]:
    model.config.output_hidden_states = True
    return lambda: setattr(model.config, "output_hidden_states", False)


REASONS: dict[str, Callable[[nn.Module], Callable[[], object]]] = {
    "hooks of others in the decoder's layers": hooked,
    "a module whose forward was replaced": replaced,
    "attention weights or hidden states are wanted": asked,
}


@pytest.mark.parametrize("reason", REASONS)
def test_a_step_that_replays_nothing(device: Device, model: nn.Module, reason: str, caplog) -> None:
    """It runs as it is, is counted, and logged once; what was lent is the cache's own again."""
    prompt = some_text(5, seed=9).to(DEVICE)

    def act(memory: cmr.Memory) -> torch.Tensor:
        run = Decoding(device, model)
        said = [decoded(run, 6)]
        undo = REASONS[reason](model)
        run._next = prompt
        said.append(decoded(run, 6))
        undo()
        run._next = prompt
        return torch.cat([*said, decoded(run, 6)])

    with caplog.at_level(logging.WARNING, logger="cmr"):
        plain, replayed, _, stats = both(model, act)
    close(replayed, plain)
    assert stats["graphs"]["plain"] == {reason: 5}
    assert (stats["graphs"]["captured"], stats["graphs"]["replayed"]) == (1, 10)
    assert sum(reason in record.getMessage() for record in caplog.records) == 1


def test_arguments_that_ask_for_more(device: Device, model: nn.Module) -> None:
    with attached(model, graphs=True) as memory:
        run = Decoding(device, model)
        decoded(run, 3)
        mask = torch.ones(1, run.cache.get_seq_length() + 1, dtype=torch.int64, device=DEVICE)
        given = {"past_key_values": run.cache, "use_cache": True}
        model(some_text(1, seed=3).to(DEVICE), attention_mask=mask, **given)
        out = model(some_text(1, seed=3).to(DEVICE), output_hidden_states=True, **given)
        assert len(out.hidden_states) == LAYERS + 1
        assert memory.stats()["graphs"]["plain"] == {
            "a mask outside of generate": 1, "the argument output_hidden_states": 1
        }  # fmt: skip


def test_a_mask_with_gaps_is_kept_to(model: nn.Module) -> None:
    ids, mask = padded_rows()
    mask[0, 20:24] = 0

    def act(memory: cmr.Memory) -> torch.Tensor:
        said = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        return said.cpu()

    plain, replayed, _, stats = both(model, act, sessions=3)
    assert plain.equal(replayed)
    assert stats["graphs"]["plain"] == {"a mask with gaps": 11}


def test_other_weights_are_recorded_anew(device: Device, model: nn.Module) -> None:
    layer = model.model.layers[0].mlp.up_proj

    def act(memory: cmr.Memory) -> torch.Tensor:
        decoded(Decoding(device, model), 3)
        memory.clear()
        before, layer.weight = layer.weight, nn.Parameter(layer.weight * 3.0, requires_grad=False)
        memory.read(some_text(400, seed=20))
        said = decoded(Decoding(device, model), 3)
        layer.weight = before
        return said

    plain, replayed, _, stats = both(model, act)
    close(replayed, plain)
    assert stats["graphs"]["captured"] == 2


def test_where_nothing_can_be_recorded(device: Device, model: nn.Module, monkeypatch) -> None:
    def refuse(*_: object) -> Any:
        raise RuntimeError("not while a stream is capturing")

    monkeypatch.setattr(graph, "record", refuse)
    plain, replayed, _, stats = both(model, lambda memory: decoded(Decoding(device, model), 6))
    close(replayed, plain)
    (reason,) = stats["graphs"]["plain"]
    assert "not while a stream is capturing" in reason and stats["graphs"]["plain"][reason] == 6
    with attached(model, graphs=True, strict=True), pytest.raises(RuntimeError, match="capturing"):
        decoded(Decoding(device, model), 1)


# -- ahead, and afterwards -------------------------------------------------------------------------


def test_warm_up_records_ahead(device: Device, model: nn.Module) -> None:
    with attached(model, graphs=True) as memory:
        assert memory.warm_up(1, 3, 3) == 2 and memory.warm_up(3) == 0
        replayed = decoded(Decoding(device, model))
        stats = memory.stats()["graphs"]
        assert (stats["captured"], stats["replayed"]) == (2, STEPS) and stats["rows"] == [1, 3]
        left = memory.tokens
    with attached(model):
        close(replayed, decoded(Decoding(device, model)))
        assert memory.tokens == left, "what warms up is no text"


def test_warm_up_refuses(device: Device, model: nn.Module) -> None:
    with attached(model) as memory, pytest.raises(ConfigError, match="graphs=True expected"):
        memory.warm_up(1)
    with attached(model, graphs=True) as memory:
        for wrong in ((), (0,), (True,), (1.0,), range(1, 10)):
            with pytest.raises(ConfigError, match="1 to 8 numbers of rows expected"):
                memory.warm_up(*wrong)
        model.train()
        with pytest.raises(AttachError, match="being trained"):
            memory.warm_up(1)


def test_nothing_is_left_of_a_text_that_is_forgotten(device: Device, model: nn.Module) -> None:
    with attached(model, graphs=True) as memory:
        run = Decoding(device, model)
        decoded(run, 4)
        (fixed,) = memory._stepper.replays._steps.values()
        keys = fixed.window.keys
        run.cache = None
        assert all(bool(x.any()) for x in keys)
        memory.forget(session="0")
        assert not any(bool(x.any()) for x in (*keys, *fixed.window.values))


def test_what_could_not_be_stored_is_not_written_over(
    device: Device, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left the window, whose columns are others' by the time it is stored."""

    def act(memory: cmr.Memory) -> torch.Tensor:
        run = Decoding(device, model)
        with monkeypatch.context() as patch:
            patch.setattr(memory._core.writer, "write", full)
            decoded(run, 20)
            assert memory.stats()["failures"] == {"store": {"OSError": 1}}
        decoded(run, 20)
        ring = memory._core.ring
        return torch.stack([ring.keys[n].cpu() for n in range(LAYERS)])

    plain, replayed, before, stats = both(model, act)
    assert stats["written_blocks"] == before["written_blocks"] and stats["graphs"]["replayed"] == 39
    close(replayed, plain)


def full(*_: object) -> int:
    raise OSError("no space left")


def test_graphs_are_not_saved() -> None:
    settings = to_header(cmr.CMRConfig(graphs=True))
    assert "graphs" not in settings and cmr.CMRConfig.from_dict(settings) == cmr.CMRConfig()


def test_a_detached_memory_leaves_caches_their_own(device: Device, model: nn.Module) -> None:
    with attached(model, graphs=True) as memory:
        run = Decoding(device, model)
        decoded(run, 4)
        layer = run.cache.layers[1]
        before = layer.keys.cpu()
        lent = memory._stepper.replays._steps[1].window
    assert not lent.lends(layer) and layer.keys.cpu().equal(before)
    assert before.shape[2] == layer.seen == 44


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "layout": ({"positions": "layout"}, "positions='constant' expected, got 'layout'"),
    "states": ({"store": "states"}, "store='kv' expected"),
    "weighted_sum": ({"method": "weighted_sum"}, "method='attention'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_cannot_be_replayed(model: nn.Module, name: str) -> None:
    settings, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        cmr.attach(model, **{**DECODING, **settings}, graphs=True)
    cmr.attach(model, **{**DECODING, **settings}).detach()


def test_a_rotation_that_changes_with_the_length_is_refused(device: Device) -> None:
    with pytest.raises(ConfigError, match=r"the same for every length expected, got .*longrope"):
        cmr.attach(moved(build("phi3_long")), store="kv", graphs=True)


def test_a_cpu_is_refused() -> None:
    model = llama()
    with pytest.raises(ConfigError, match="a model on a CUDA device expected, got one on cpu"):
        cmr.attach(model, graphs=True)
    cmr.attach(model).detach()
