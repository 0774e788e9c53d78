"""Tiny checkpoints of the encoder families that the package promises to take or to refuse, and what each should give.

`FAMILIES` has them all by name. The vectors that a family should give are computed with transformers or
sentence-transformers alone (`features`), so that nothing here learns from the package what is right.
"""

from families import dual_encoders, refusals, sentence_encoders, text_encoders, vision_encoders
from families.family import FAMILIES, Family

__all__ = ["FAMILIES", "Family", "dual_encoders", "refusals", "sentence_encoders", "text_encoders", "vision_encoders"]
