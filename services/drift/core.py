"""
The three cores of drift, each over one log: answers are counted on the journal, their labels on examples, and both merged on
summaries. See the modules for the laws that each keeps.
"""

from __future__ import annotations

from .answers import AnswersDrift
from .examples import ExamplesDrift
from .merge import Merge
from .windows import ROW_FORMAT

__all__ = ["ROW_FORMAT", "AnswersDrift", "ExamplesDrift", "Merge"]
