"""The oldest transformers that is covered: a model with a memory equals there what it must, too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

OLDEST = Path(sys.prefix) / "transformers-5.0"
"""Where the README's test command puts it, beside the installed one."""

INTEGRATION = Path(__file__).parents[1]
FILES = tuple(
    INTEGRATION / name
    for name in (
        "decoder/oldest.py",
        "reweave/test_oracles.py",
        "decoder/test_families.py",
        "hooks/test_generation.py",
        "window/test_cache.py",
        "window/test_cache_contract.py",
        "hooks/test_drafts.py",
        "window/test_padding_overflow.py",
    )
)
LEFT_OUT = "ministral3 or gemma2 or phi3_long"
"""What 5.0 itself computes otherwise than the model means: it scales Ministral 3's queries by their
place in the cache, leaves out Gemma 2's cap on logits, and has LongRoPE turn whole heads only."""
CHOSEN = " or ".join(
    (
        "oldest",
        "test_a_memory_that_is_off_changes_no_bit and paused and (llama or sliding)",
        f"test_all_in_memory_step_by_step_is_full_attention and not ({LEFT_OUT})",
        "test_the_first_tokens_do_not_read_memory and 6",
        "test_every_way and llama and not prompt",
        "test_left_padded_rows_generate_with_a_static_cache",
        "test_a_reset_cache_starts_again",
        "(test_cache_contract or test_drafts or test_padding_overflow) and "
        "not (gpt2 or gemma3 or mistral or beams)",
    )
)
"""Each family step by step, and what changed since then: masks, static caches, cropping."""


@pytest.mark.timeout(600)
def test_the_oldest_version() -> None:
    assert not [path for path in FILES if not path.exists()], "a file has moved"
    if not OLDEST.is_dir():
        pytest.skip(f"no {OLDEST.name} here: the README's test command installs it")
    paths = [str(OLDEST), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "CMR_EXPECTED_TRANSFORMERS": "5.0.",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", CHOSEN]
    run = subprocess.run(
        [*command, *map(str, FILES)],
        cwd=INTEGRATION.parents[1],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed and int(passed[1]) >= 30, run.stdout[-2000:]
