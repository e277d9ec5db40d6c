"""Contextual Memory Reweaving: a memory for any Hugging Face decoder.

Public names are imported when they are first used, so `import cmr` is light: it loads neither
triton nor faiss nor any model code and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cmr.config import (
        CMRConfig,
        MemoryConfig,
        OptimizationConfig,
        RetrievalConfig,
        ReweaveConfig,
    )
    from cmr.errors import (
        AttachError,
        CMRError,
        CMRWarning,
        ConfigError,
        CorruptMemoryError,
        MemoryKeyError,
        MemoryNotFoundError,
        MissingPackageError,
        ModelMismatchError,
        ModelNotFoundError,
        NewerFormatError,
        SessionError,
        StoreBusyError,
        StoreError,
        UnknownSessionError,
        UnsupportedModelError,
    )
    from cmr.integration.attaching import attach, load
    from cmr.integration.calibration.calibrate import calibrate
    from cmr.integration.capture.reader import ReadReport
    from cmr.integration.consolidation import ConsolidationReport
    from cmr.integration.forgetter import ForgetReport
    from cmr.integration.hooks.hook_manager import Hook, HookManager
    from cmr.integration.memory import Memory
    from cmr.integration.models.backbone.backbones import (
        BackboneAdapter,
        GemmaAdapter,
        MistralAdapter,
    )
    from cmr.integration.models.full import FullCMRModel
    from cmr.integration.models.mistral import MistralCMRModel, create_mistral_cmr_model
    from cmr.integration.models.outputs import CMROutput
    from cmr.integration.models.transformer import CMRTransformer, IntegratedCMRModel
    from cmr.integration.requests.session import Session
    from cmr.integration.reweave.recalled_passage import RecalledPassage
    from cmr.memory.buffer.layered import LayeredMemoryBuffer
    from cmr.memory.entry import MemoryEntry
    from cmr.memory.inspection import Inspection, StoredBlock
    from cmr.memory.relevance import RelevanceScorer
    from cmr.memory.store import SaveReport
    from cmr.monitoring.monitor import CMRPerformanceMonitor
    from cmr.optimization.background import BackgroundOptimizer
    from cmr.optimization.batches import BatchProcessingOptimizer
    from cmr.optimization.optimizer import CMRPerformanceOptimizer
    from cmr.optimization.prefetcher import MemoryPrefetcher
    from cmr.optimization.scheduler import ComputationScheduler
    from cmr.optimization.thresholds import AdaptiveThresholdManager
    from cmr.reconstruction.blender import ContextBlender
    from cmr.reconstruction.integrator import ReconstructionIntegrator
    from cmr.reconstruction.reconstructor import LayeredStateReconstructor
    from cmr.reconstruction.result import Reconstruction
    from cmr.retrieval.cache import RetrievalCache
    from cmr.retrieval.calibration import Calibration
    from cmr.retrieval.clusters.hierarchy import MemoryHierarchy
    from cmr.retrieval.entries.advanced import AdvancedMemoryRetriever
    from cmr.retrieval.entries.context import RetrievalContext
    from cmr.retrieval.entries.matcher import SemanticMemoryMatcher
    from cmr.retrieval.strategies.contextual import ContextualRelevanceScorer
    from cmr.retrieval.strategies.criteria import MultiCriteriaRanker
    from cmr.retrieval.strategies.registry import register_strategy
    from cmr.retrieval.strategies.tasks import TaskSettings, register_task

_HOMES = {
    "cmr.config": (
        "CMRConfig",
        "MemoryConfig",
        "OptimizationConfig",
        "RetrievalConfig",
        "ReweaveConfig",
    ),
    "cmr.errors": (
        "AttachError",
        "CMRError",
        "CMRWarning",
        "ConfigError",
        "CorruptMemoryError",
        "MemoryKeyError",
        "MemoryNotFoundError",
        "MissingPackageError",
        "ModelMismatchError",
        "ModelNotFoundError",
        "NewerFormatError",
        "SessionError",
        "StoreBusyError",
        "StoreError",
        "UnknownSessionError",
        "UnsupportedModelError",
    ),
    "cmr.integration.attaching": ("attach", "load"),
    "cmr.integration.calibration.calibrate": ("calibrate",),
    "cmr.integration.forgetter": ("ForgetReport",),
    "cmr.integration.hooks.hook_manager": ("Hook", "HookManager"),
    "cmr.integration.memory": ("Memory",),
    "cmr.integration.models.backbone.backbones": (
        "BackboneAdapter",
        "GemmaAdapter",
        "MistralAdapter",
    ),
    "cmr.integration.models.full": ("FullCMRModel",),
    "cmr.integration.models.mistral": ("MistralCMRModel", "create_mistral_cmr_model"),
    "cmr.integration.models.outputs": ("CMROutput",),
    "cmr.integration.models.transformer": ("CMRTransformer", "IntegratedCMRModel"),
    "cmr.integration.capture.reader": ("ReadReport",),
    "cmr.integration.reweave.recalled_passage": ("RecalledPassage",),
    "cmr.integration.requests.session": ("Session",),
    "cmr.integration.consolidation": ("ConsolidationReport",),
    "cmr.memory.buffer.layered": ("LayeredMemoryBuffer",),
    "cmr.memory.entry": ("MemoryEntry",),
    "cmr.memory.inspection": ("Inspection", "StoredBlock"),
    "cmr.memory.relevance": ("RelevanceScorer",),
    "cmr.memory.store": ("SaveReport",),
    "cmr.monitoring.monitor": ("CMRPerformanceMonitor",),
    "cmr.optimization.background": ("BackgroundOptimizer",),
    "cmr.optimization.batches": ("BatchProcessingOptimizer",),
    "cmr.optimization.optimizer": ("CMRPerformanceOptimizer",),
    "cmr.optimization.prefetcher": ("MemoryPrefetcher",),
    "cmr.optimization.scheduler": ("ComputationScheduler",),
    "cmr.optimization.thresholds": ("AdaptiveThresholdManager",),
    "cmr.reconstruction.blender": ("ContextBlender",),
    "cmr.reconstruction.integrator": ("ReconstructionIntegrator",),
    "cmr.reconstruction.reconstructor": ("LayeredStateReconstructor",),
    "cmr.reconstruction.result": ("Reconstruction",),
    "cmr.retrieval.entries.advanced": ("AdvancedMemoryRetriever",),
    "cmr.retrieval.cache": ("RetrievalCache",),
    "cmr.retrieval.calibration": ("Calibration",),
    "cmr.retrieval.entries.context": ("RetrievalContext",),
    "cmr.retrieval.strategies.contextual": ("ContextualRelevanceScorer",),
    "cmr.retrieval.strategies.criteria": ("MultiCriteriaRanker",),
    "cmr.retrieval.clusters.hierarchy": ("MemoryHierarchy",),
    "cmr.retrieval.entries.matcher": ("SemanticMemoryMatcher",),
    "cmr.retrieval.strategies.registry": ("register_strategy",),
    "cmr.retrieval.strategies.tasks": ("TaskSettings", "register_task"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AdaptiveThresholdManager",
    "AdvancedMemoryRetriever",
    "AttachError",
    "BackboneAdapter",
    "BackgroundOptimizer",
    "BatchProcessingOptimizer",
    "CMRConfig",
    "CMRError",
    "CMROutput",
    "CMRPerformanceMonitor",
    "CMRPerformanceOptimizer",
    "CMRTransformer",
    "CMRWarning",
    "Calibration",
    "ComputationScheduler",
    "ConfigError",
    "ConsolidationReport",
    "ContextBlender",
    "ContextualRelevanceScorer",
    "CorruptMemoryError",
    "ForgetReport",
    "FullCMRModel",
    "GemmaAdapter",
    "Hook",
    "HookManager",
    "Inspection",
    "IntegratedCMRModel",
    "LayeredMemoryBuffer",
    "LayeredStateReconstructor",
    "Memory",
    "MemoryConfig",
    "MemoryEntry",
    "MemoryHierarchy",
    "MemoryKeyError",
    "MemoryNotFoundError",
    "MemoryPrefetcher",
    "MissingPackageError",
    "MistralAdapter",
    "MistralCMRModel",
    "ModelMismatchError",
    "ModelNotFoundError",
    "MultiCriteriaRanker",
    "NewerFormatError",
    "OptimizationConfig",
    "ReadReport",
    "RecalledPassage",
    "Reconstruction",
    "ReconstructionIntegrator",
    "RelevanceScorer",
    "RetrievalCache",
    "RetrievalConfig",
    "RetrievalContext",
    "ReweaveConfig",
    "SaveReport",
    "SemanticMemoryMatcher",
    "Session",
    "SessionError",
    "StoreBusyError",
    "StoreError",
    "StoredBlock",
    "TaskSettings",
    "UnknownSessionError",
    "UnsupportedModelError",
    "attach",
    "calibrate",
    "create_mistral_cmr_model",
    "load",
    "register_strategy",
    "register_task",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'cmr' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
