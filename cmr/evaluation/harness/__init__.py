"""A memory as a model of EleutherAI's lm-evaluation-harness (`lm-eval`).

`python -m cmr.evaluation.harness run --model cmr …` is its command line with that model;
`cmr.evaluation.harness.model.MemoryLM` is what its `simple_evaluate` takes.
"""
