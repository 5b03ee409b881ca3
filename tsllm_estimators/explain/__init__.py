"""Look into fitted estimators of either face: tables first, plots on top."""

from tsllm_estimators.explain._alignment import Alignment, alignment, plot_alignment
from tsllm_estimators.explain._experts import ExpertContributions, expert_contributions
from tsllm_estimators.explain._modulation import modulation_table
from tsllm_estimators.explain._plot_experts import plot_experts
from tsllm_estimators.explain._prompt import prompt_sensitivity
from tsllm_estimators.explain._retrievals import (
    PromptRetrievals,
    plot_retrievals,
    prompt_retrievals,
)
from tsllm_estimators.explain._routing import plot_routing, routing_table

__all__ = [
    "Alignment",
    "ExpertContributions",
    "PromptRetrievals",
    "alignment",
    "expert_contributions",
    "modulation_table",
    "plot_alignment",
    "plot_experts",
    "plot_retrievals",
    "plot_routing",
    "prompt_retrievals",
    "prompt_sensitivity",
    "routing_table",
]
