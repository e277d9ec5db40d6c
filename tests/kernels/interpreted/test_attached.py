"""A whole model with a memory, every operation a Triton kernel, interpreted."""

import pytest
import torch
import transformers

import cmr
from cmr.kernels import using
from cmr.kernels.gpu import _launch
from tests.kernels.helpers.compare import assert_close

SHAPE = dict(
    vocab_size=100,
    hidden_size=60,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    head_dim=20,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
    initializer_range=0.2,
)
SETTINGS = dict(
    window=32, block_size=16, budget=96, target_layers=(0, 1), index_layer=1, threshold=0.0,
    gain=0.0, sink_guard=0, refresh=2, query_tokens=16, left_context=16,
)  # fmt: skip


def text(*shape: int, seed: int) -> torch.Tensor:
    return torch.randint(3, 100, shape, generator=torch.Generator().manual_seed(seed))


def run(model: torch.nn.Module, **settings: object) -> tuple[torch.Tensor, list]:
    """Logits of a prompt and some steps, and what was recalled."""
    with cmr.attach(model, **SETTINGS, **settings) as memory, torch.no_grad():
        memory.read(text(2, 66, seed=0), torch.tensor([[1] * 66, [1] * 40 + [0] * 26]))
        out = model(text(2, 6, seed=1), use_cache=True)
        logits = [out.logits[:, -1]]
        for step in range(3):
            ids = text(2, 1, seed=step)
            logits.append(model(ids, past_key_values=out.past_key_values).logits[:, -1])
        spans = [[(p.start, p.end) for p in row] for row in memory.recalled]
    return torch.stack(logits), spans


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "weighted_sum"},
        {"reconstruction_method": "weighted_sum", "max_memory_tokens": 20},
    ],
)
def test_an_attached_model_is_the_same_with_either(settings, monkeypatch) -> None:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()
    launched: set[str] = set()
    plain = _launch.launcher

    def noted(kernel, *rest):
        launched.add(kernel.fn.__name__)
        plain(kernel, *rest)

    monkeypatch.setattr(_launch, "launcher", noted)
    have, found = run(model, **settings)
    with using("reference"):
        ran = set(launched)
        want, expected = run(model, **settings)
        assert ran == launched, "the reference launched kernels"
    assert len(ran) >= 8, ran
    assert found == expected and all(found)
    assert_close("logits", have, want, 2e-4, 2e-4)
