"""Whole models, each one function to be called inside `hk.transform_with_state`.

All of them compute in `dtype`, 'float32' or 'bfloat16', with float32 parameters and outputs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import haiku as hk
import jax.numpy as jnp
from jax import Array

from perceiver_jax.baselines.classifiers import image_baseline, point_baseline
from perceiver_jax.checks import build, check_array, check_axes
from perceiver_jax.decoder import (
    AverageDecoder,
    ClassQueryDecoder,
    FlowUpsample,
    QueryDecoder,
    decode_in_chunks,
)
from perceiver_jax.encoder import Encoder
from perceiver_jax.errors import Refused
from perceiver_jax.filterbank import FilterbankElements
from perceiver_jax.grids import FourierGrid, fourier_positions
from perceiver_jax.inputs import (
    SHRINK,
    FlowInputs,
    ImageInputs,
    JoinModalities,
    TextInputs,
    audio_elements,
    point_elements,
    spectrogram_elements,
    video_elements,
)
from perceiver_jax.layers import Linear, check_dtype
from perceiver_jax.position_encoding import LearnedPositions, grid_fourier_features
from perceiver_jax.sharding import for_each_example, in_mesh_of, reshape_examples


def image_classifier(
    images: Array,
    input_mask: Array | None = None,
    *,
    is_training: bool,
    num_classes: int,
    inputs: Mapping[str, Any],
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any] | None = None,
    dtype: str = 'float32',
    implementation: str = 'auto',
    batch_norm_axis: str | None = None,
) -> Array:
    """Classifies images with a Perceiver or a Perceiver IO.

    Args:
      images: `[B, height, width, channels]`, normalised with ImageNet's mean and deviation.
      input_mask: Boolean `[B, M]`, true for the input elements to attend to, in the order of
        `ImageInputs` (shuffled, with a permutation); None: all of them.
      is_training: Whether batch statistics are used and dropout is applied.
      num_classes: Number of logits.
      inputs: Fields of `ImageInputs`.
      encoder: Fields of `Encoder`.
      decoder: Fields of `ClassQueryDecoder` (Perceiver IO); None averages the latents (ICML).
      dtype: Precision of the computation, 'float32' or 'bfloat16'; parameters are float32.
      implementation: Implementation of `attend`, everywhere: 'auto', 'chunked', 'fused',
        'pallas', 'splash', or 'plain', the readable definition, which forward-mode differentiation
        needs.
      batch_norm_axis: Name of the axis mapped by `jax.pmap` that batch statistics are averaged
        across; None: only over the batch at hand.

    Returns:
      Logits `[B, num_classes]` float32.

    Raises:
      Refused: Fields or shapes do not fit together.

    Source: Perceiver, section 4.1; Perceiver IO, section 4.4 and appendix A.
    """
    check_dtype(dtype)
    check_axes('image_classifier', images=(images, 'B height width channels'))
    read = build(ImageInputs, inputs, batch_norm_axis=batch_norm_axis, name='inputs')
    byte_array = read(images.astype(dtype), input_mask, is_training=is_training)  # [B, M, C]
    latents = build(Encoder, encoder, implementation=implementation, name='encoder')(
        byte_array, input_mask, is_training=is_training
    )  # [B, N, D]
    return _classify(
        latents,
        num_classes=num_classes,
        decoder=decoder,
        implementation=implementation,
        is_training=is_training,
    )


def point_classifier(
    points: Array,
    input_mask: Array | None = None,
    *,
    is_training: bool,
    num_classes: int,
    inputs: Mapping[str, Any],
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any] | None = None,
    dtype: str = 'float32',
    implementation: str = 'auto',
) -> Array:
    """Classifies point clouds; the order of the points plays no part.

    Args:
      points: `[B, M, 3]` coordinates in [-1, 1], any number of them.
      input_mask: Boolean `[B, M]`, true for the points to attend to; None: all of them.
      is_training: Whether dropout is applied.
      num_classes: Number of logits.
      inputs: Arguments of `point_elements`.
      encoder: Fields of `Encoder`.
      decoder: Fields of `ClassQueryDecoder` (Perceiver IO); None averages the latents (ICML).
      dtype: Precision of the computation, 'float32' or 'bfloat16'; positions and parameters are
        float32.
      implementation: Implementation of `attend`, everywhere: 'auto', 'plain', 'chunked', 'fused',
        'pallas', 'splash'; forward-mode differentiation needs 'plain'.

    Returns:
      Logits `[B, num_classes]` float32.

    Raises:
      Refused: Fields or shapes do not fit together.

    Source: Perceiver, section 4.3.
    """
    check_dtype(dtype)
    check_axes('point_classifier', points=(points, 'B M coordinates'))
    points = points.astype(jnp.float32)  # positions are, whatever `dtype` is
    elements = build(point_elements, inputs, points=points).astype(dtype)  # [B, M, C]
    latents = build(Encoder, encoder, implementation=implementation, name='encoder')(
        elements, input_mask, is_training=is_training
    )  # [B, N, D]
    return _classify(
        latents,
        num_classes=num_classes,
        decoder=decoder,
        implementation=implementation,
        is_training=is_training,
    )


def _classify(
    latents: Array,
    *,
    num_classes: int,
    decoder: Mapping[str, Any] | None,
    implementation: str,
    is_training: bool,
) -> Array:  # [B, N, D] -> [B, num_classes]
    if decoder is None:
        return AverageDecoder(num_classes, name='decoder')(latents)
    decode = build(
        ClassQueryDecoder,
        decoder,
        num_classes=num_classes,
        implementation=implementation,
        name='decoder',
    )
    return decode(latents, is_training=is_training)


def optical_flow(
    frames: Array,
    *,
    is_training: bool,
    inputs: Mapping[str, Any],
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    upsampling: Mapping[str, Any] | None = None,
    output_divisor: float = 100.0,
    flow_scale: float = 20.0,
    dtype: str = 'float32',
    implementation: str = 'auto',
    batch_norm_axis: str | None = None,
) -> Array:
    """Estimates optical flow: where each pixel of the first frame moves to in the second.

    The output queries are the input elements themselves, those of both frames; where frames are
    separate elements, those of the first.

    Args:
      frames: `[B, 2, height, width, 3]` in [-1, 1].
      is_training: Whether batch statistics are used and dropout is applied.
      inputs: Fields of `FlowInputs`.
      encoder: Fields of `Encoder`.
      decoder: Fields of `QueryDecoder`.
      upsampling: Fields of `FlowUpsample`, for inputs that a convolution makes smaller: it takes
        as many channels from the decoder as the contents of an input element have; None: the
        decoder's outputs are the flow.
      output_divisor: What the network's output is divided by.
      flow_scale: Pixels of one unit of the divided output; 20: training targets are flow / 20.
      dtype: Precision of the computation, 'float32' or 'bfloat16'; parameters are float32.
      implementation: Implementation of `attend`, everywhere: 'auto', 'plain', 'chunked', 'fused',
        'pallas', 'splash'; forward-mode differentiation needs 'plain'.
      batch_norm_axis: Name of the axis mapped by `jax.pmap` that batch statistics are averaged
        across; None: only over the batch at hand.

    Returns:
      `[B, height, width, 2]` float32: (u, v), to the right and down, in pixels of the frames.

    Raises:
      Refused: Fields or shapes do not fit together.

    Source: Perceiver IO, section 4.2 and appendix H; scales and queries of DeepMind's release.
    """
    check_dtype(dtype)
    check_axes('optical_flow', frames=(frames, 'B 2 height width channels'))
    read = build(FlowInputs, inputs, batch_norm_axis=batch_norm_axis, name='inputs')
    if (upsampling is None) != (read.contents == 'patches'):
        raise Refused(
            f'upsampling goes with contents that are downsampled, not {read.contents!r} '
            f'with {upsampling}.'
        )
    if upsampling is not None and upsampling.get('factor', SHRINK) != SHRINK:
        raise Refused(
            f'upsampling.factor is {upsampling["factor"]}, and the convolution makes frames '
            f'{SHRINK} times smaller.'
        )
    elements = read(frames.astype(dtype), is_training=is_training)  # a grid, [B, M, C]
    latents = build(Encoder, encoder, implementation=implementation, name='encoder')(
        elements, is_training=is_training
    )  # [B, N, D]
    batch, _, height, width, _ = frames.shape
    rows, columns = read.grid(height, width)
    queries = elements
    if not read.concatenate_frames:
        first = elements.contents[:, 0]
        queries = dataclasses.replace(elements, contents=first, rows=jnp.arange(rows))
    channels = 2 if upsampling is None else read.channels
    decode = build(
        QueryDecoder,
        decoder,
        output_channels=channels,
        implementation=implementation,
        name='decoder',
    )
    flow = decode(queries, latents, is_training=is_training)  # [B, rows * columns, channels]
    flow = flow.reshape(batch, rows, columns, channels)
    if upsampling is not None:
        flow = build(FlowUpsample, upsampling, name='upsampling')(flow)[:, :height, :width]
    return flow / output_divisor * flow_scale


def masked_language_model(
    tokens: Array,
    input_mask: Array | None = None,
    query_mask: Array | None = None,
    *,
    is_training: bool,
    inputs: Mapping[str, Any],
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    dtype: str = 'float32',
    implementation: str = 'auto',
) -> Array:
    """Predicts the bytes of a text with one output query a position.

    The embeddings of the inputs are the output matrix too.

    Args:
      tokens: Integers `[B, M]`, M up to the longest length of the model: shorter sequences need no
        padding.
      input_mask: Boolean `[B, M]`, true where there is text; None: everywhere.
      query_mask: Boolean `[B, M]`, true where an output is wanted, elsewhere it means nothing;
        None: the input mask.
      is_training: Whether dropout is applied.
      inputs: Fields of `TextInputs`.
      encoder: Fields of `Encoder`.
      decoder: Fields of `QueryDecoder`.
      dtype: Precision of the computation, 'float32' or 'bfloat16'; parameters are float32.
      implementation: Implementation of `attend`, everywhere: 'auto', 'plain', 'chunked', 'fused',
        'pallas', 'splash'; forward-mode differentiation needs 'plain'.

    Returns:
      Logits `[B, M, vocabulary]` float32.

    Raises:
      Refused: Fields or shapes do not fit together.

    Source: Perceiver IO, section 4.1; masks and output queries of DeepMind's release.
    """
    check_dtype(dtype)
    embed = build(TextInputs, inputs, name='inputs')
    elements, embeddings = embed(tokens, dtype)  # [B, M, C], [vocabulary, C]
    latents = build(Encoder, encoder, implementation=implementation, name='encoder')(
        elements, input_mask, is_training=is_training
    )
    queries = LearnedPositions(embed.max_length, channels=embed.channels, name='output_queries')()
    queries = queries[: tokens.shape[1]].astype(dtype)  # [M, C]
    decode = build(
        QueryDecoder, decoder, output_channels=None, implementation=implementation, name='decoder'
    )
    outputs = decode(
        for_each_example(queries, tokens),
        latents,
        input_mask if query_mask is None else query_mask,
        is_training=is_training,
    )  # [B, M, C]
    return _TiedOutput(name='output')(outputs.astype(jnp.float32), embeddings)


class _TiedOutput(hk.Module):
    """Logits by the input embeddings; the parameter `b` `[vocabulary]` is its own."""

    def __call__(self, outputs: Array, embeddings: Array) -> Array:
        b = hk.get_parameter('b', embeddings.shape[:1], jnp.float32, jnp.zeros)
        return outputs @ embeddings.T + b[None, None]


def video_autoencoder(
    video: Array,
    audio: Array,
    label: Array | None = None,
    *,
    is_training: bool,
    num_classes: int,
    inputs: Mapping[str, Any],
    encoder: Mapping[str, Any],
    queries: Mapping[str, Any],
    decoder: Mapping[str, Any],
    hidden: Mapping[str, Array] | None = None,
    input_mask: Array | None = None,
    output_elements: Mapping[str, Array] | None = None,
    chunk_size: int | None = 16384,
    dtype: str = 'float32',
    implementation: str = 'auto',
) -> dict[str, Array]:
    """Reconstructs video, sound and class label from one array of latents.

    Args:
      video: `[B, frames, height, width, 3]` in [0, 1].
      audio: `[B, samples, 1]` in [-1, 1].
      label: One-hot `[B, num_classes]`; None hides it, as in evaluation.
      is_training: Whether dropout is applied.
      num_classes: Number of class labels.
      inputs: `video`, arguments of `video_elements`; `audio`, arguments of `audio_elements`;
        `min_padding` of `JoinModalities`.
      encoder: Fields of `Encoder`.
      queries: `video`, `audio`: `num_bands` and `max_resolution` of the output queries' Fourier
        positions; `label_channels`; `min_padding`; `endpoint`, see `grid_fourier_features` (the
        released weights want False).
      decoder: Fields of `QueryDecoder`.
      hidden: 'video', 'audio' or 'label' -> boolean, `[B, M]` for its M elements, true where the
        mask token replaces the element; None: nothing is hidden but a missing label.
      input_mask: Boolean `[B, M]`, true for the input elements to attend to, in the order audio,
        video, label; None: all of them.
      output_elements: 'video' or 'audio' -> integers `[O]`, indices of the pixels or patches to
        reconstruct, as in training; None or a name that is left out: everything.
      chunk_size: Output queries decoded at a time; None: all at once.
      dtype: Precision of the computation, 'float32' or 'bfloat16'; parameters are float32.
      implementation: Implementation of `attend`, everywhere: 'auto', 'plain', 'chunked', 'fused',
        'pallas', 'splash'; forward-mode differentiation needs 'plain'.

    Returns:
      `video` `[B, frames, height, width, 3]` and `audio` `[B, samples, 1]`, or `[B, O, 3]` and
      `[B, O * samples of a patch, 1]` with `output_elements`; `label`, logits `[B, num_classes]`.
      All float32.

    Raises:
      Refused: Fields or shapes do not fit together.

    Source: Perceiver IO, section 4.3; paddings, mask tokens and queries of DeepMind's release.
    """
    check_dtype(dtype)
    check_axes(
        'video_autoencoder',
        video=(video, 'B frames height width channels'),
        audio=(audio, 'B samples 1'),
        label=(label, f'B {num_classes}'),
    )
    _check_parts('inputs', inputs, {'video', 'audio', 'min_padding'})
    _check_parts(
        'queries', queries, {'video', 'audio', 'label_channels', 'min_padding', 'endpoint'}
    )
    for modality in ('video', 'audio'):
        _check_parts(f'queries[{modality!r}]', queries[modality], {'num_bands', 'max_resolution'})
    if unknown := set(output_elements or ()) - {'video', 'audio'}:
        raise Refused(f"output_elements are of 'video' and 'audio', not of {sorted(unknown)}.")
    batch, hidden = video.shape[0], dict(hidden or {})
    if label is None:
        label = jnp.zeros((batch, num_classes))
        hidden['label'] = jnp.ones((batch, 1), bool)
    elements: dict[str, Array | FourierGrid] = {
        'audio': build(audio_elements, inputs['audio'], audio=audio.astype(dtype)),
        'video': build(video_elements, inputs['video'], video=video.astype(dtype)),
        'label': label.astype(dtype)[:, None],
    }
    if inputs['audio'].get('hop') not in (None, inputs['audio']['samples_per_patch']):
        raise Refused(
            f'inputs.audio.hop is {inputs["audio"]["hop"]}: the sound that comes out is put '
            'together of patches that do not overlap.'
        )
    join = JoinModalities(inputs['min_padding'], mask_tokens=True, name='inputs')
    latents = build(Encoder, encoder, implementation=implementation, name='encoder')(
        join(elements, hidden), input_mask, is_training=is_training
    )  # [B, N, D]

    grids = {'audio': elements['audio'].shape[1:2], 'video': video.shape[1:4], 'label': (1,)}
    output_channels = {
        'audio': inputs['audio']['samples_per_patch'],
        'video': video.shape[-1],
        'label': num_classes,
    }
    label_query = LearnedPositions(1, channels=queries['label_channels'], name='label_query')()
    pad = JoinModalities(queries['min_padding'], name='output_queries').pad
    widest = max(
        queries['label_channels'],
        *(len(grids[m]) * (2 * queries[m]['num_bands'] + 1) for m in ('audio', 'video')),
    )
    decode_queries = build(QueryDecoder, decoder, implementation=implementation, name='decoder')
    outputs = {m: Linear(output_channels[m], name=f'{m}_output') for m in grids}

    def decode_elements(modality: str, which: Array) -> Array:  # indices [O] -> [B, O, channels]
        if modality == 'label':
            query = label_query
        else:
            endpoint = queries['endpoint']
            positions = dict(queries[modality], elements=which, endpoint=endpoint)
            query = grid_fourier_features(grids[modality], **positions)
        query = pad(modality, query, widest + queries['min_padding']).astype(dtype)
        query = for_each_example(query, latents)
        return outputs[modality](decode_queries(query, latents, is_training=is_training))

    def decode_rows(which: Array) -> Array:  # indices of rows of the frames, one after the other
        no_contents = jnp.zeros((len(which), grids['video'][-1], 0), dtype)
        endpoint = queries['endpoint']
        positions = fourier_positions(grids['video'], **queries['video'], endpoint=endpoint)
        query = FourierGrid(for_each_example(no_contents, latents), positions, rows=which)
        query = pad('video', query, widest + queries['min_padding'])
        return outputs['video'](decode_queries(query, latents, is_training=is_training))

    decoded = {}
    for modality, grid in grids.items():
        if output_elements is not None and modality in output_elements:
            decoded[modality] = decode_elements(modality, output_elements[modality])
        else:
            in_rows = modality == 'video'
            with in_mesh_of(latents):
                decoded[modality] = decode_in_chunks(
                    decode_rows if in_rows else functools.partial(decode_elements, modality),
                    num_queries=math.prod(grid),
                    chunk_size=chunk_size,
                    group_size=grid[-1] if in_rows else 1,
                )
            if modality == 'video':
                decoded[modality] = reshape_examples(decoded[modality], *video.shape[1:])
    return {
        'video': decoded['video'],
        'audio': reshape_examples(decoded['audio'], -1, 1),
        'label': decoded['label'][:, 0],
    }


def audio_visual_classifier(
    modalities: Mapping[str, Array],
    *,
    is_training: bool,
    num_classes: int,
    inputs: Mapping[str, Any],
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any] | None = None,
    dtype: str = 'float32',
    implementation: str = 'auto',
) -> Array:
    """Classifies sound, video, or both, with a Perceiver or a Perceiver IO.

    Args:
      modalities: Name -> array, for the names that `inputs` has: 'audio' `[B, samples, 1]`, raw,
        in [-1, 1]; 'spectrogram' `[B, frames, bins]`, such as `log_mel` makes; 'video'
        `[B, frames, height, width, 3]` in [-1, 1]; 'filterbank', as 'audio', for learned filters,
        which are not in the papers, and if wanted 'filterbank_mask', see `FilterbankElements`. A
        modality that was dropped is all zeros.
      is_training: Whether dropout is applied.
      num_classes: Number of logits.
      inputs: `audio`, arguments of `audio_elements`; `spectrogram`, arguments of
        `spectrogram_elements`; `filterbank`, fields of `FilterbankElements`; `video`, arguments of
        `video_elements`; `min_padding` of `JoinModalities`.
      encoder: Fields of `Encoder`.
      decoder: Fields of `ClassQueryDecoder` (Perceiver IO); None averages the latents (ICML).
      dtype: Precision of the computation, 'float32' or 'bfloat16'; parameters are float32.
      implementation: Implementation of `attend`, everywhere: 'auto', 'plain', 'chunked', 'fused',
        'pallas', 'splash'; forward-mode differentiation needs 'plain'.

    Returns:
      Logits `[B, num_classes]` float32; where a clip can have several labels, as on AudioSet, they
      are logits of sigmoids.

    Raises:
      Refused: Fields, shapes or modalities do not fit together.

    Source: Perceiver, section 4.2; Perceiver IO, appendix G.
    """
    check_dtype(dtype)
    make_elements: dict[str, Callable[..., Array | FourierGrid]] = {
        'audio': audio_elements,
        'spectrogram': spectrogram_elements,
        'video': video_elements,
    }
    known = [*make_elements, 'filterbank']
    _check_parts('inputs', inputs, {'min_padding'}, known)
    expected = set(inputs) - {'min_padding'}
    if not hasattr(modalities, 'values'):
        raise Refused(f'modalities are a mapping of arrays, not {type(modalities).__name__}.')
    for name, x in modalities.items():
        check_array('audio_visual_classifier', name, x)
    masks = {'filterbank_mask'} if 'filterbank' in expected else set()
    if set(modalities) - masks != expected or not expected <= set(known):
        raise Refused(
            f'modalities are {sorted(modalities)}, and the model takes {sorted(expected)}, '
            f'of {known}.'
        )
    elements = {
        name: build(make, inputs[name], **{name: modalities[name].astype(dtype)})
        for name, make in make_elements.items()
        if name in expected
    }
    if 'filterbank' in expected:  # which has parameters
        make = build(FilterbankElements, inputs['filterbank'], name='filterbank')
        elements['filterbank'] = make(
            modalities['filterbank'].astype(dtype), modalities.get('filterbank_mask')
        )
    byte_array = JoinModalities(inputs['min_padding'], name='inputs')(elements)  # [B, M, C]
    latents = build(Encoder, encoder, implementation=implementation, name='encoder')(
        byte_array, is_training=is_training
    )  # [B, N, D]
    return _classify(
        latents,
        num_classes=num_classes,
        decoder=decoder,
        implementation=implementation,
        is_training=is_training,
    )


# The models that can be saved with their weights, by name.
MODELS: dict[str, Callable[..., Any]] = {
    'image_classifier': image_classifier,
    'point_classifier': point_classifier,
    'optical_flow': optical_flow,
    'masked_language_model': masked_language_model,
    'video_autoencoder': video_autoencoder,
    'audio_visual_classifier': audio_visual_classifier,
    'image_baseline': image_baseline,
    'point_baseline': point_baseline,
}


def _check_parts(
    name: str, parts: Mapping[str, Any], needed: set[str], possible: Collection[str] = ()
) -> None:
    """Checks which keys a mapping has whose values are mappings for several modalities."""
    if not hasattr(parts, 'keys') or not needed <= set(parts) <= {*needed, *possible}:
        shown = sorted(parts) if hasattr(parts, 'keys') else repr(parts)
        either = f', and of {sorted(possible)}' if possible else ''
        raise Refused(f'{name} is a mapping with {sorted(needed)}{either}; got {shown}.')
