"""The Perceiver and Perceiver IO in pure Haiku.

Building blocks are Haiku modules; whole models are functions to be called inside
`hk.transform_with_state`. `load` gives a model with its weights, to be called as it is.
`front_ends` turns files into what the models take, `tiling` runs flow on frames of any size.
"""

from perceiver_jax import front_ends, tiling
from perceiver_jax.attention import Attention, CrossAttend, SelfAttend
from perceiver_jax.chunks import compiling_for
from perceiver_jax.decoder import (
    AverageDecoder,
    ClassQueryDecoder,
    FlowUpsample,
    QueryDecoder,
    decode_in_chunks,
)
from perceiver_jax.dot_product_attention import attend, attention_logits, attention_weights
from perceiver_jax.encoder import Encoder, schedule
from perceiver_jax.errors import Refused
from perceiver_jax.filterbank import FilterbankElements
from perceiver_jax.front_ends.spectrogram import log_mel
from perceiver_jax.grids import FourierGrid, fourier_grid
from perceiver_jax.inputs import (
    FlowInputs,
    ImageInputs,
    JoinModalities,
    TextInputs,
    audio_elements,
    extract_patches,
    point_elements,
    space_to_depth,
    spectrogram_elements,
    video_elements,
)
from perceiver_jax.layers import Mlp
from perceiver_jax.models import (
    audio_visual_classifier,
    image_baseline,
    image_classifier,
    masked_language_model,
    optical_flow,
    point_baseline,
    point_classifier,
    video_autoencoder,
)
from perceiver_jax.position_encoding import (
    LearnedPositions,
    fourier_features,
    grid_fourier_features,
    grid_positions,
    resample_positions,
)
from perceiver_jax.recording import record_attention
from perceiver_jax.weights.labels import parameter_labels
from perceiver_jax.weights.loading import load
from perceiver_jax.weights.pretrained import Pretrained, initialise
from perceiver_jax.weights.released import RELEASED
from perceiver_jax.weights.transfer import compare_arguments, transfer

__version__ = '0.2.0'  # pyproject.toml reads it here

__all__ = [
    # Attention
    'attend',
    'attention_weights',
    'attention_logits',
    'record_attention',
    'compiling_for',
    'Attention',
    'Mlp',
    'CrossAttend',
    'SelfAttend',
    # Positions
    'grid_positions',
    'fourier_features',
    'grid_fourier_features',
    'resample_positions',
    'LearnedPositions',
    # Inputs
    'ImageInputs',
    'FlowInputs',
    'TextInputs',
    'JoinModalities',
    'FourierGrid',
    'fourier_grid',
    'extract_patches',
    'space_to_depth',
    'audio_elements',
    'point_elements',
    'spectrogram_elements',
    'FilterbankElements',
    'log_mel',
    'video_elements',
    # Inputs -> latents -> outputs
    'Encoder',
    'schedule',
    'AverageDecoder',
    'QueryDecoder',
    'ClassQueryDecoder',
    'FlowUpsample',
    'decode_in_chunks',
    # Whole models
    'image_classifier',
    'point_classifier',
    'optical_flow',
    'masked_language_model',
    'video_autoencoder',
    'audio_visual_classifier',
    # What the papers compare them with
    'image_baseline',
    'point_baseline',
    # Models with their weights
    'load',
    'initialise',
    'Pretrained',
    'RELEASED',
    # Weights that go on to another model, or that training leaves as they are
    'transfer',
    'compare_arguments',
    'parameter_labels',
    # What is raised where an argument, a file or a configuration cannot be used
    'Refused',
    # From files to models
    'front_ends',
    'tiling',
]
