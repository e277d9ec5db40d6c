"""A quick evaluation: generated documents with planted facts, and questions about them.

The kinds are those of RULER (Hsieh et al. 2024): needles alone and among others, several values of
one, several asked at once, variables to be tracked, words to be counted; and a conversation in
which somebody says in passing what they like.
"""

from cmr.evaluation.quick.texts import KINDS, quick

__all__ = ["KINDS", "quick"]
