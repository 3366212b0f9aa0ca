"""What a model looks at: captured from the model as it is, composed through all of its layers."""

from vitrail.explain import cam as cam
from vitrail.explain import controls as controls
from vitrail.explain import input_gradients as input_gradients
from vitrail.explain import occlusion as occlusion
from vitrail.explain.attention_gradients import attribution, gradient_rollout
from vitrail.explain.bands import BandImportance, BandScores, band_importance
from vitrail.explain.captum_metrics import infidelity, sensitivity
from vitrail.explain.capture import AttentionRecord, CapturedMixing, capture_attention
from vitrail.explain.carrier import Rollout
from vitrail.explain.faithfulness import Curve, deletion, insertion
from vitrail.explain.fused_streams import SpectralRegions, StreamShares, spectral_regions, stream_shares
from vitrail.explain.interface import Explanation, StreamMap, explain, list_methods
from vitrail.explain.layer_attention import AttentionDistance, AttentionMaps, attention_distances, attention_maps
from vitrail.explain.localisation import energy_inside, mask_iou, pointing_game
from vitrail.explain.method_table import compare_methods, measure, score_methods
from vitrail.explain.positions import (
    BiasAndContent,
    PositionSimilarity,
    RelativeBias,
    bias_and_content,
    position_similarities,
    relative_biases,
)
from vitrail.explain.randomisation import Randomisation, randomisation_check
from vitrail.explain.remove_and_debias import Road, road
from vitrail.explain.rollout import attention_rollout
from vitrail.explain.token_maps import token_maps

__all__ = [
    "AttentionDistance",
    "AttentionMaps",
    "AttentionRecord",
    "BandImportance",
    "BandScores",
    "BiasAndContent",
    "CapturedMixing",
    "Curve",
    "Explanation",
    "PositionSimilarity",
    "Randomisation",
    "RelativeBias",
    "Road",
    "Rollout",
    "SpectralRegions",
    "StreamMap",
    "StreamShares",
    "attention_distances",
    "attention_maps",
    "attention_rollout",
    "attribution",
    "band_importance",
    "bias_and_content",
    "capture_attention",
    "compare_methods",
    "deletion",
    "energy_inside",
    "explain",
    "gradient_rollout",
    "infidelity",
    "insertion",
    "list_methods",
    "mask_iou",
    "measure",
    "pointing_game",
    "position_similarities",
    "randomisation_check",
    "relative_biases",
    "road",
    "score_methods",
    "sensitivity",
    "spectral_regions",
    "stream_shares",
    "token_maps",
]
