"""What a model looks at: captured from the model as it is, composed through all of its layers."""

from vitrail.explain.capture import AttentionRecord, CapturedMixing, capture_attention
from vitrail.explain.rollout import Rollout, attention_rollout
from vitrail.explain.token_maps import token_maps

__all__ = [
    "AttentionRecord",
    "CapturedMixing",
    "Rollout",
    "attention_rollout",
    "capture_attention",
    "token_maps",
]
