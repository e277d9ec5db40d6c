"""Contextual Memory Reweaving: a memory for any Hugging Face decoder.

Public names are imported when they are first used, so `import cmr` is light: it loads neither
triton nor faiss nor any model code and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Type checkers follow no `__getattr__`, so for them every name stands a second time; `as` is how
# they are told that it is public.
if TYPE_CHECKING:
    from cmr.config import CMRConfig as CMRConfig
    from cmr.config import MemoryConfig as MemoryConfig
    from cmr.config import OptimizationConfig as OptimizationConfig
    from cmr.config import RetrievalConfig as RetrievalConfig
    from cmr.config import ReweaveConfig as ReweaveConfig
    from cmr.errors import AttachError as AttachError
    from cmr.errors import CMRError as CMRError
    from cmr.errors import CMRWarning as CMRWarning
    from cmr.errors import ConfigError as ConfigError
    from cmr.errors import CorruptMemoryError as CorruptMemoryError
    from cmr.errors import EvaluationError as EvaluationError
    from cmr.errors import MemoryKeyError as MemoryKeyError
    from cmr.errors import MemoryNotFoundError as MemoryNotFoundError
    from cmr.errors import MissingPackageError as MissingPackageError
    from cmr.errors import ModelMismatchError as ModelMismatchError
    from cmr.errors import ModelNotFoundError as ModelNotFoundError
    from cmr.errors import NewerFormatError as NewerFormatError
    from cmr.errors import NonFiniteStateError as NonFiniteStateError
    from cmr.errors import SessionError as SessionError
    from cmr.errors import SessionNameError as SessionNameError
    from cmr.errors import StoreBusyError as StoreBusyError
    from cmr.errors import StoreError as StoreError
    from cmr.errors import UnknownSessionError as UnknownSessionError
    from cmr.errors import UnsupportedModelError as UnsupportedModelError
    from cmr.evaluation.evaluation import Evaluation as Evaluation
    from cmr.evaluation.tester import Dataset as Dataset
    from cmr.evaluation.tester import DatasetTester as DatasetTester
    from cmr.evaluation.tester import compare_configurations as compare_configurations
    from cmr.integration.attach import attach as attach
    from cmr.integration.attach import load as load
    from cmr.integration.calibration.calibrate import calibrate as calibrate
    from cmr.integration.consolidation import ConsolidationReport as ConsolidationReport
    from cmr.integration.conversation import RememberReport as RememberReport
    from cmr.integration.forgetter import ForgetReport as ForgetReport
    from cmr.integration.memory import Memory as Memory
    from cmr.integration.models.backbone.backbones import BackboneAdapter as BackboneAdapter
    from cmr.integration.models.backbone.backbones import GemmaAdapter as GemmaAdapter
    from cmr.integration.models.backbone.backbones import MistralAdapter as MistralAdapter
    from cmr.integration.models.full import FullCMRModel as FullCMRModel
    from cmr.integration.models.mistral import MistralCMRModel as MistralCMRModel
    from cmr.integration.models.mistral import create_mistral_cmr_model as create_mistral_cmr_model
    from cmr.integration.models.outputs import CMROutput as CMROutput
    from cmr.integration.models.transformer import CMRTransformer as CMRTransformer
    from cmr.integration.models.transformer import IntegratedCMRModel as IntegratedCMRModel
    from cmr.integration.reader import ReadReport as ReadReport
    from cmr.integration.requests.session import Session as Session
    from cmr.integration.reweave.recalled_passage import RecalledPassage as RecalledPassage
    from cmr.integration.user_hooks.hook import Hook as Hook
    from cmr.integration.user_hooks.hook_manager import HookManager as HookManager
    from cmr.memory.buffer.layered import LayeredMemoryBuffer as LayeredMemoryBuffer
    from cmr.memory.entry import MemoryEntry as MemoryEntry
    from cmr.memory.inspection import Inspection as Inspection
    from cmr.memory.inspection import StoredBlock as StoredBlock
    from cmr.memory.relevance import RelevanceScorer as RelevanceScorer
    from cmr.memory.store import SaveReport as SaveReport
    from cmr.monitoring.monitor import CMRPerformanceMonitor as CMRPerformanceMonitor
    from cmr.optimization.background import BackgroundOptimizer as BackgroundOptimizer
    from cmr.optimization.batches import BatchProcessingOptimizer as BatchProcessingOptimizer
    from cmr.optimization.optimizer import CMRPerformanceOptimizer as CMRPerformanceOptimizer
    from cmr.optimization.prefetcher import MemoryPrefetcher as MemoryPrefetcher
    from cmr.optimization.scheduler import ComputationScheduler as ComputationScheduler
    from cmr.optimization.thresholds import AdaptiveThresholdManager as AdaptiveThresholdManager
    from cmr.reconstruction.blender import ContextBlender as ContextBlender
    from cmr.reconstruction.integrator import ReconstructionIntegrator as ReconstructionIntegrator
    from cmr.reconstruction.reconstructor import (
        LayeredStateReconstructor as LayeredStateReconstructor,
    )
    from cmr.reconstruction.result import Reconstruction as Reconstruction
    from cmr.retrieval.cache import RetrievalCache as RetrievalCache
    from cmr.retrieval.calibration import Calibration as Calibration
    from cmr.retrieval.clusters.hierarchy import MemoryHierarchy as MemoryHierarchy
    from cmr.retrieval.entries.advanced import AdvancedMemoryRetriever as AdvancedMemoryRetriever
    from cmr.retrieval.entries.context import RetrievalContext as RetrievalContext
    from cmr.retrieval.strategies.contextual import (
        ContextualRelevanceScorer as ContextualRelevanceScorer,
    )
    from cmr.retrieval.strategies.criteria import MultiCriteriaRanker as MultiCriteriaRanker
    from cmr.retrieval.strategies.registry import register_strategy as register_strategy
    from cmr.retrieval.strategies.semantic import SemanticMemoryMatcher as SemanticMemoryMatcher
    from cmr.retrieval.strategies.tasks import TaskSettings as TaskSettings
    from cmr.retrieval.strategies.tasks import register_task as register_task

_HOMES = {
    "cmr.config": "CMRConfig MemoryConfig OptimizationConfig RetrievalConfig ReweaveConfig",
    "cmr.errors": (
        "AttachError CMRError CMRWarning ConfigError CorruptMemoryError EvaluationError "
        "MemoryKeyError MemoryNotFoundError MissingPackageError ModelMismatchError "
        "ModelNotFoundError NewerFormatError NonFiniteStateError SessionError SessionNameError "
        "StoreBusyError StoreError UnknownSessionError UnsupportedModelError"
    ),
    "cmr.evaluation.evaluation": "Evaluation",
    "cmr.evaluation.tester": "Dataset DatasetTester compare_configurations",
    "cmr.integration.attach": "attach load",
    "cmr.integration.calibration.calibrate": "calibrate",
    "cmr.integration.conversation": "RememberReport",
    "cmr.integration.reader": "ReadReport",
    "cmr.integration.consolidation": "ConsolidationReport",
    "cmr.integration.forgetter": "ForgetReport",
    "cmr.integration.user_hooks.hook": "Hook",
    "cmr.integration.user_hooks.hook_manager": "HookManager",
    "cmr.integration.memory": "Memory",
    "cmr.integration.models.backbone.backbones": "BackboneAdapter GemmaAdapter MistralAdapter",
    "cmr.integration.models.full": "FullCMRModel",
    "cmr.integration.models.mistral": "MistralCMRModel create_mistral_cmr_model",
    "cmr.integration.models.outputs": "CMROutput",
    "cmr.integration.models.transformer": "CMRTransformer IntegratedCMRModel",
    "cmr.integration.requests.session": "Session",
    "cmr.integration.reweave.recalled_passage": "RecalledPassage",
    "cmr.memory.buffer.layered": "LayeredMemoryBuffer",
    "cmr.memory.entry": "MemoryEntry",
    "cmr.memory.inspection": "Inspection StoredBlock",
    "cmr.memory.relevance": "RelevanceScorer",
    "cmr.memory.store": "SaveReport",
    "cmr.monitoring.monitor": "CMRPerformanceMonitor",
    "cmr.optimization.background": "BackgroundOptimizer",
    "cmr.optimization.batches": "BatchProcessingOptimizer",
    "cmr.optimization.optimizer": "CMRPerformanceOptimizer",
    "cmr.optimization.prefetcher": "MemoryPrefetcher",
    "cmr.optimization.scheduler": "ComputationScheduler",
    "cmr.optimization.thresholds": "AdaptiveThresholdManager",
    "cmr.reconstruction.blender": "ContextBlender",
    "cmr.reconstruction.integrator": "ReconstructionIntegrator",
    "cmr.reconstruction.reconstructor": "LayeredStateReconstructor",
    "cmr.reconstruction.result": "Reconstruction",
    "cmr.retrieval.cache": "RetrievalCache",
    "cmr.retrieval.calibration": "Calibration",
    "cmr.retrieval.clusters.hierarchy": "MemoryHierarchy",
    "cmr.retrieval.entries.advanced": "AdvancedMemoryRetriever",
    "cmr.retrieval.entries.context": "RetrievalContext",
    "cmr.retrieval.strategies.semantic": "SemanticMemoryMatcher",
    "cmr.retrieval.strategies.contextual": "ContextualRelevanceScorer",
    "cmr.retrieval.strategies.criteria": "MultiCriteriaRanker",
    "cmr.retrieval.strategies.registry": "register_strategy",
    "cmr.retrieval.strategies.tasks": "TaskSettings register_task",
}
"""Public names, by the module that they come from."""
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'cmr' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
