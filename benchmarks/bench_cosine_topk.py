"""Cosine top-k against faiss and plain PyTorch: `pytest benchmarks/bench_cosine_topk.py`.

Run it with `OMP_NUM_THREADS=2`. Each case first holds the results to plain PyTorch's. Faiss takes
float32 only.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cmr.kernels.cosine_topk import cosine_topk

HIDDEN, K = 576, 16
WAYS = [("cmr", "float32"), ("faiss", "float32"), ("plain", "float32")]
WAYS += [("cmr", "bfloat16"), ("plain", "bfloat16")]


@pytest.mark.parametrize(("by", "dtype"), WAYS)
@pytest.mark.parametrize("queries", [1, 32, 512])
@pytest.mark.parametrize("entries", [4096, 65536])
def test_cosine_topk(benchmark, entries: int, queries: int, by: str, dtype: str) -> None:
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    stored = F.normalize(torch.randn(entries, HIDDEN), dim=-1).to(kind)
    query = torch.randn(queries, HIDDEN)
    benchmark.extra_info.update(
        threads=torch.get_num_threads(), torch=torch.__version__, bytes=stored.nbytes
    )

    def plain() -> torch.Tensor:
        return torch.topk((F.normalize(query, dim=-1).to(kind) @ stored.t()).float(), K).values

    def ours() -> torch.Tensor:
        return cosine_topk(query, stored, None, None, K)[0]

    ways = {"cmr": ours, "plain": plain}
    if by == "faiss":
        faiss = pytest.importorskip("faiss")
        faiss.omp_set_num_threads(torch.get_num_threads())
        flat = faiss.IndexFlatIP(HIDDEN)
        flat.add(stored.numpy())
        ways["faiss"] = lambda: torch.from_numpy(
            flat.search(F.normalize(query, dim=-1).numpy(), K)[0]
        )
    with torch.inference_mode():
        close = 1e-5 if kind == torch.float32 else 4e-3
        torch.testing.assert_close(ways[by](), plain(), atol=close, rtol=0)
        benchmark(ways[by])
