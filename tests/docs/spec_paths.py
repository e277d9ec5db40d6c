"""Where the specification's modules and names live here: the one table of it.

`python -m tests.docs.spec_paths` prints it as it stands in docs/names.md.
"""

from __future__ import annotations

from collections.abc import Mapping

import cmr

RETRIEVAL_PARTS = (
    "SemanticMemoryMatcher",
    "ContextualRelevanceScorer",
    "MultiCriteriaRanker",
    "MemoryHierarchy",
    "RetrievalCache",
)
OPTIMIZERS = (
    "CMRPerformanceOptimizer",
    "AdaptiveThresholdManager",
    "BatchProcessingOptimizer",
    "MemoryPrefetcher",
    "ComputationScheduler",
    "BackgroundOptimizer",
)
MODULES: Mapping[str, tuple[str, ...]] = {
    "models": ("CMRTransformer",),
    "models.base_transformer": ("CMRTransformer",),
    "models.memory_entry": ("MemoryEntry",),
    "models.memory_buffer": ("LayeredMemoryBuffer",),
    "models.relevance_scorer": ("RelevanceScorer",),
    "models.advanced_retrieval": (
        "AdvancedMemoryRetriever",
        "RetrievalContext",
        *RETRIEVAL_PARTS,
    ),
    "models.reconstruction": (
        "LayeredStateReconstructor",
        "ReconstructionIntegrator",
        "ContextBlender",
    ),
    "models.performance_optimization": OPTIMIZERS,
    "models.cmr_integrated": ("IntegratedCMRModel",),
    "models.cmr_full_integrated": ("FullCMRModel",),
    "models.mistral_integration": (
        "create_mistral_cmr_model",
        "MistralCMRModel",
        "BackboneAdapter",
        "MistralAdapter",
        "GemmaAdapter",
    ),
    "integration": ("IntegratedCMRModel", "FullCMRModel", "MistralCMRModel", "HookManager"),
    "optimization": OPTIMIZERS,
    "monitoring": ("CMRPerformanceMonitor",),
    "services": RETRIEVAL_PARTS,
    "experiments": ("DatasetTester", "Evaluation", "compare_configurations"),
    "utils": ("HookManager", "MemoryHierarchy", "RetrievalCache", "CMRConfig"),
}
"""Module path of the specification to names, each of which imports from `cmr`."""

BEGIN, END = "<!-- spec -->", "<!-- /spec -->"


def home(name: str) -> str:
    """The package that a public name lives in.

    Raises:
        KeyError: `cmr` has no such name.
    """
    return cmr._HOME_OF[name].rpartition(".")[0]


def table() -> str:
    """The table in Markdown, between its markers."""
    rows = []
    for module, names in MODULES.items():
        homes = dict.fromkeys(f"`{home(name)}`" for name in names)
        rows.append(f"| `{module}` | {_listed(names)} | {', '.join(homes)} |")
    head = "| specification | import from `cmr` | lives in |\n|---|---|---|"
    return "\n".join([BEGIN, head, *rows, END])


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(table())
