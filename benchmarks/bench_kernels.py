"""Times of the reference kernels: `OMP_NUM_THREADS=2 pytest benchmarks/bench_kernels.py`.

Each case first holds the kernel to plain PyTorch on the same random data, then times both.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cmr.kernels import attention_with_lse, block_maxima, cosine_topk, reweave_attention

HIDDEN, BLOCK = 576, 32


@pytest.fixture(autouse=True)
def conditions(benchmark):
    torch.manual_seed(0)
    benchmark.extra_info.update(
        threads=torch.get_num_threads(), torch=torch.__version__, dtype="bfloat16", hidden=HIDDEN
    )
    with torch.inference_mode():
        yield


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1).bfloat16()


@pytest.mark.parametrize("by", ["cmr", "plain"])
@pytest.mark.parametrize("queries", [1, 32])
@pytest.mark.parametrize("tokens", [4096, 65536])
def test_maxsim(benchmark, tokens: int, queries: int, by: str) -> None:
    query, index = unit(1, queries, HIDDEN), unit(tokens // BLOCK, BLOCK, HIDDEN)
    mask = torch.ones(index.shape[:2], dtype=torch.bool)

    def plain() -> torch.Tensor:
        similar = (query @ index.flatten(0, 1).t()).unflatten(-1, mask.shape)
        return similar.masked_fill(~mask, float("-inf")).amax(-1).float()

    def ours() -> torch.Tensor:
        return block_maxima(query, index, mask)

    torch.testing.assert_close(ours(), plain(), atol=4e-3, rtol=0)
    benchmark(ours if by == "cmr" else plain)


@pytest.mark.parametrize("by", ["cmr", "plain"])
@pytest.mark.parametrize("entries", [4096, 65536])
def test_cosine_topk(benchmark, entries: int, by: str) -> None:
    query, stored = torch.randn(1, HIDDEN), unit(entries, HIDDEN)

    def plain() -> torch.return_types.topk:
        return torch.topk((F.normalize(query, dim=-1).bfloat16() @ stored.t()).float(), 16)

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        return cosine_topk(query, stored, None, None, 16)

    torch.testing.assert_close(ours()[0], plain().values, atol=4e-3, rtol=0)
    benchmark(ours if by == "cmr" else plain)


@pytest.mark.parametrize("by", ["cmr", "plain"])
@pytest.mark.parametrize("entries", [192, 512])
def test_reweave_decode(benchmark, entries: int, by: str) -> None:
    query = torch.randn(1, 9, 1, 64).bfloat16()
    memory = torch.randn(2, 1, 3, entries, 64).bfloat16()
    local = torch.randn(2, 1, 3, 512, 64).bfloat16()
    keys, values = torch.cat([memory, local], 3)

    def plain() -> torch.Tensor:
        return F.scaled_dot_product_attention(query, keys, values, enable_gqa=True)

    def ours() -> torch.Tensor:
        local_out, local_lse = attention_with_lse(query, local[0], local[1])
        return reweave_attention(query, memory[0], memory[1], None, local_out, local_lse)[0]

    torch.testing.assert_close(ours(), plain(), atol=8e-3, rtol=2e-2)
    benchmark(ours if by == "cmr" else plain)
