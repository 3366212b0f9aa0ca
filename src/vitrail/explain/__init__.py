"""What a model looks at: captured from the model as it is, composed through all of its layers."""

from vitrail.explain.attention_gradients import attribution, gradient_rollout
from vitrail.explain.capture import AttentionRecord, CapturedMixing, capture_attention
from vitrail.explain.carrier import Rollout
from vitrail.explain.fused_streams import SpectralRegions, StreamShares, spectral_regions, stream_shares
from vitrail.explain.interface import Explanation, StreamMap, explain, list_methods
from vitrail.explain.layer_attention import AttentionDistance, AttentionMaps, attention_distances, attention_maps
from vitrail.explain.positions import (
    BiasAndContent,
    PositionSimilarity,
    RelativeBias,
    bias_and_content,
    position_similarities,
    relative_biases,
)
from vitrail.explain.rollout import attention_rollout
from vitrail.explain.token_maps import token_maps

__all__ = [
    "AttentionDistance",
    "AttentionMaps",
    "AttentionRecord",
    "BiasAndContent",
    "CapturedMixing",
    "Explanation",
    "PositionSimilarity",
    "RelativeBias",
    "Rollout",
    "SpectralRegions",
    "StreamMap",
    "StreamShares",
    "attention_distances",
    "attention_maps",
    "attention_rollout",
    "attribution",
    "bias_and_content",
    "capture_attention",
    "explain",
    "gradient_rollout",
    "list_methods",
    "position_similarities",
    "relative_biases",
    "spectral_regions",
    "stream_shares",
    "token_maps",
]
