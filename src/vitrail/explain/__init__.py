"""What a model looks at: captured from the model as it is, composed through all of its layers."""

from vitrail.explain import cam as cam
from vitrail.explain import input_gradients as input_gradients
from vitrail.explain import occlusion as occlusion
from vitrail.explain.capture import AttentionRecord, CapturedMixing, capture_attention
from vitrail.explain.interface import Explanation, StreamMap, explain, list_methods
from vitrail.explain.rollout import Rollout, attention_rollout
from vitrail.explain.token_maps import token_maps

__all__ = [
    "AttentionRecord",
    "CapturedMixing",
    "Explanation",
    "Rollout",
    "StreamMap",
    "attention_rollout",
    "capture_attention",
    "explain",
    "list_methods",
    "token_maps",
]
