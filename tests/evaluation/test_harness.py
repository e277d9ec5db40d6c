"""The model `cmr` of lm-eval: contexts are read, items know nothing of each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cmr.errors import EvaluationError
from cmr.evaluation.prompts import encode
from tests.evaluation.conftest import DOCUMENTS, SETTINGS

pytest.importorskip("lm_eval", reason="the extra `harness`")

from cmr.evaluation.harness.model import MemoryLM, register

LONG = DOCUMENTS["harbour.txt"]


@pytest.fixture
def lm(decoder: tuple[Any, Any]) -> Iterator[MemoryLM]:
    model, tokenizer = decoder
    lm = MemoryLM(model, tokenizer, max_gen_toks=4, **SETTINGS)
    yield lm
    lm.memory.detach()


class Request:
    """What lm-eval hands over of an item."""

    def __init__(self, *args: Any) -> None:
        self.args = args


def test_what_is_long_is_read_up_to_its_last_part(lm: MemoryLM) -> None:
    tokens = lambda text: encode(lm.tokenizer, text)  # noqa: E731
    assert lm.parted("short", 4) == ([], tokens("short"))
    assert lm.parted(f"{LONG}\n\nWho?", 4) == (tokens(f"{LONG}\n\n"), tokens("Who?"))
    read, asked = lm.parted(LONG, 4)
    assert read + asked == tokens(LONG) and len(asked) == lm.memory.config.window // 2
    opening = "<s>user: "
    read, asked = lm.parted(f"{opening}{LONG}\n\nWho?</s>", 4)
    assert read == tokens(f"{opening}{LONG}\n\n") and asked == tokens(f"{opening}Who?</s>")


def test_the_context_is_recalled_and_gone_with_the_next_item(lm: MemoryLM) -> None:
    asked = Request(f"{LONG}\n\nWho?", {"until": ["\n"], "max_gen_toks": 3})
    [first] = lm.generate_until([asked], disable_tqdm=True)
    assert lm.memory.recalled[0], "nothing was recalled of the context"
    assert lm.memory.tokens >= len(LONG) - 64
    other = Request("Who?", {"until": ["\n"], "max_gen_toks": 3})
    [alone] = lm.generate_until([other], disable_tqdm=True)
    assert not lm.memory.recalled[0] and lm.memory.tokens == 0
    assert lm.generate_until([asked, other], disable_tqdm=True) == [first, alone]


def test_a_reply_ends_where_the_task_says(lm: MemoryLM) -> None:
    [whole] = lm.generate_until([Request("Who?", {"max_gen_toks": 12})], disable_tqdm=True)
    end = whole[2:4]
    [cut] = lm.generate_until(
        [Request("Who?", {"until": end, "max_gen_toks": 12})], disable_tqdm=True
    )
    assert len(whole) > 4 and cut == whole.partition(end)[0]


def test_likelihoods_are_those_of_the_model(lm: MemoryLM, decoder: tuple[Any, Any]) -> None:
    model, tokenizer = decoder
    [(score, greedy)] = lm.loglikelihood([Request("The night train", " leaves")], disable_tqdm=True)
    with lm.memory.paused(), torch.inference_mode():
        ids = torch.tensor([encode(tokenizer, "The night train leaves")])
        logs = model(ids).logits[0].float().log_softmax(-1)
    asked = len(encode(tokenizer, "The night train"))
    want = sum(logs[at - 1, ids[0, at]] for at in range(asked, ids.shape[1]))
    assert score == pytest.approx(float(want), abs=1e-3) and not greedy
    text, best = "The night train", int(logs[asked - 1].argmax())
    encoded = ((text, ""), encode(tokenizer, text), [best])
    [(_, greedy)] = lm._loglikelihood_tokens([encoded], disable_tqdm=True)
    assert greedy


def test_memory_changes_a_likelihood_only_where_the_context_is_long(lm: MemoryLM) -> None:
    long = Request(f"{LONG}\n\nWho?", " Lindqvist")
    [(with_memory, _)] = lm.loglikelihood([long], disable_tqdm=True)
    with lm.memory.retrieval(blocks=0):
        [(without, _)] = lm.loglikelihood([long], disable_tqdm=True)
    assert with_memory != without
    total = lm.loglikelihood_rolling([Request(LONG)], disable_tqdm=True)[0]
    assert total < 0 and lm.memory.tokens > 0


def test_a_size_of_batches_is_refused(decoder: tuple[Any, Any]) -> None:
    with pytest.raises(EvaluationError, match="batch_size: 1 expected"):
        MemoryLM(*decoder, batch_size=8)
    assert not any(m._forward_pre_hooks for m in decoder[0].modules())


def test_a_device_that_is_not_there_is_the_cpu(
    decoder: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """What lm-eval's command line says where nobody said anything."""
    if torch.cuda.is_available():
        pytest.skip("there is such a device")
    lm = MemoryLM(*decoder, device="cuda:0", **SETTINGS)
    lm.memory.detach()
    assert lm.model.device.type == "cpu" and "no device cuda:0" in caplog.text


def test_a_task_runs(decoder: tuple[Any, Any], tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    lines = [
        {"text": LONG, "question": "Who?", "answer": "Marta", "other": "x" * n} for n in (1, 2)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "items.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{text}}\n\n{{question}}",
    }
    tasks = [
        {
            **common,
            "task": "said",
            "output_type": "generate_until",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2},
            "metric_list": [{"metric": "exact_match"}],
        },
        {
            **common,
            "task": "chosen",
            "output_type": "multiple_choice",
            "doc_to_choice": ["Marta", "x"],
            "doc_to_target": 0,
            "metric_list": [{"metric": "acc"}],
        },
    ]
    register()
    register()
    found = simple_evaluate(
        "cmr",
        {"pretrained": decoder[0].config.name_or_path, **SETTINGS},
        tasks=tasks,
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    assert found is not None
    assert found["results"]["said"]["exact_match,none"] == 0.0
    assert 0.0 <= found["results"]["chosen"]["acc,none"] <= 1.0
    assert found["n-samples"]["chosen"]["effective"] == 2
