"""Explanations: relevance of pixels for a model of any family, measures of it, and the structure of the model."""

from vitrail.explain.capture.record import AttentionRecord, CapturedMixing, capture_attention
from vitrail.explain.interface import explain
from vitrail.explain.methods import cam as cam
from vitrail.explain.methods import controls as controls
from vitrail.explain.methods import input_gradients as input_gradients
from vitrail.explain.methods import occlusion as occlusion
from vitrail.explain.methods import point_occlusion as point_occlusion
from vitrail.explain.methods.attention_gradients import attribution, gradient_rollout
from vitrail.explain.methods.bands import BandImportance, BandScores, band_importance
from vitrail.explain.methods.fused_streams import SpectralRegions, StreamShares, spectral_regions, stream_shares
from vitrail.explain.methods.layer_attention import (
    AttentionDistance,
    AttentionMaps,
    attention_distances,
    attention_maps,
)
from vitrail.explain.methods.maps import Explanation, StreamMap
from vitrail.explain.methods.registry import list_methods, register_method
from vitrail.explain.methods.relevance import Rollout
from vitrail.explain.methods.rollout import attention_rollout
from vitrail.explain.methods.token_maps import token_maps
from vitrail.explain.metrics.captum_metrics import infidelity, sensitivity
from vitrail.explain.metrics.faithfulness import Curve, deletion, insertion
from vitrail.explain.metrics.localisation import energy_inside, mask_iou, pointing_game
from vitrail.explain.metrics.method_table import compare_methods, measure, score_methods
from vitrail.explain.metrics.randomisation import Randomisation, randomisation_check
from vitrail.explain.metrics.remove_and_debias import Road, road
from vitrail.explain.structure.filters import ProjectionFilters, projection_filters
from vitrail.explain.structure.heads import AttentionEntropy, HeadFocus, attention_entropy, head_focus
from vitrail.explain.structure.positions import (
    BiasAndContent,
    PositionSimilarity,
    RelativeBias,
    bias_and_content,
    position_similarities,
    relative_biases,
)
from vitrail.explain.structure.similarity import all_features, cka_matrix, linear_cka

__all__ = [
    "AttentionDistance",
    "AttentionEntropy",
    "AttentionMaps",
    "AttentionRecord",
    "BandImportance",
    "BandScores",
    "BiasAndContent",
    "CapturedMixing",
    "Curve",
    "Explanation",
    "HeadFocus",
    "PositionSimilarity",
    "ProjectionFilters",
    "Randomisation",
    "RelativeBias",
    "Road",
    "Rollout",
    "SpectralRegions",
    "StreamMap",
    "StreamShares",
    "all_features",
    "attention_distances",
    "attention_entropy",
    "attention_maps",
    "attention_rollout",
    "attribution",
    "band_importance",
    "bias_and_content",
    "capture_attention",
    "cka_matrix",
    "compare_methods",
    "deletion",
    "energy_inside",
    "explain",
    "gradient_rollout",
    "head_focus",
    "infidelity",
    "insertion",
    "linear_cka",
    "list_methods",
    "mask_iou",
    "measure",
    "pointing_game",
    "position_similarities",
    "projection_filters",
    "randomisation_check",
    "register_method",
    "relative_biases",
    "road",
    "score_methods",
    "sensitivity",
    "spectral_regions",
    "stream_shares",
    "token_maps",
]
