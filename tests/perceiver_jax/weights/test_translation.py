"""Foreign weights: names, layouts and files of DeepMind and Hugging Face, and hostile files."""

import collections
import json
import os
import pickle
import sys
import types

import haiku as hk
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from perceiver_jax.weights import foreign_files, translation

# ours | DeepMind's | Hugging Face's | layout. Written out, to be told apart from the table that
# is tested; `w` and `scale` are `weight` there, `b` and `offset` are `bias`.
CROSS_ATTEND = """
norm_queries:scale    | layer_norm:scale        | attention.self.layernorm1.weight | vector
norm_queries:offset   | layer_norm:offset       | attention.self.layernorm1.bias   | vector
norm_inputs:scale     | layer_norm_1:scale      | attention.self.layernorm2.weight | vector
norm_inputs:offset    | layer_norm_1:offset     | attention.self.layernorm2.bias   | vector
norm_mlp:scale        | layer_norm_2:scale      | layernorm.weight                 | vector
norm_mlp:offset       | layer_norm_2:offset     | layernorm.bias                   | vector
attention/query:w     | attention/linear:w      | attention.self.query.weight      | linear
attention/query:b     | attention/linear:b      | attention.self.query.bias        | vector
attention/key:w       | attention/linear_1:w    | attention.self.key.weight        | linear
attention/key:b       | attention/linear_1:b    | attention.self.key.bias          | vector
attention/value:w     | attention/linear_2:w    | attention.self.value.weight      | linear
attention/value:b     | attention/linear_2:b    | attention.self.value.bias        | vector
attention/output:w    | attention/linear_3:w    | attention.output.dense.weight    | linear
attention/output:b    | attention/linear_3:b    | attention.output.dense.bias      | vector
mlp/hidden:w          | mlp/linear:w            | mlp.dense1.weight                | linear
mlp/hidden:b          | mlp/linear:b            | mlp.dense1.bias                  | vector
mlp/output:w          | mlp/linear_1:w          | mlp.dense2.weight                | linear
mlp/output:b          | mlp/linear_1:b          | mlp.dense2.bias                  | vector
"""
SELF_ATTEND = """
norm_attention:scale  | layer_norm:scale        | attention.self.layernorm1.weight | vector
norm_attention:offset | layer_norm:offset       | attention.self.layernorm1.bias   | vector
norm_mlp:scale        | layer_norm_1:scale      | layernorm.weight                 | vector
norm_mlp:offset       | layer_norm_1:offset     | layernorm.bias                   | vector
""" + '\n'.join(CROSS_ATTEND.splitlines()[7:])

IMAGENET = """
decoder:query | classification_decoder/~/basic_decoder/~/trainable_position_encoding:pos_embs | perceiver.decoder.decoder.output_position_encodings.position_embeddings | matrix
decoder/query_decoder/output:w | classification_decoder/~/basic_decoder/output:w | perceiver.decoder.decoder.final_layer.weight | linear
decoder/query_decoder/output:b | classification_decoder/~/basic_decoder/output:b | perceiver.decoder.decoder.final_layer.bias | vector
"""  # noqa: E501
LEARNED = """
inputs/conv1x1:w | image_preprocessor/~/conv2_d:w | perceiver.input_preprocessor.convnet_1x1.weight | conv1x1
inputs/conv1x1:b | image_preprocessor/~/conv2_d:b | perceiver.input_preprocessor.convnet_1x1.bias | vector
inputs/position_encoding:positions | image_preprocessor/~_build_network_inputs/trainable_position_encoding:pos_embs | perceiver.input_preprocessor.position_embeddings.position_embeddings | matrix
inputs/position_encoding/projection:w | image_preprocessor/~_build_network_inputs/position_encoding_projector/linear:w | perceiver.input_preprocessor.positions_projection.weight | linear
inputs/position_encoding/projection:b | image_preprocessor/~_build_network_inputs/position_encoding_projector/linear:b | perceiver.input_preprocessor.positions_projection.bias | vector
"""  # noqa: E501
CONV = """
inputs/conv7x7:w | image_preprocessor/~/conv2_d_downsample/~/conv:w | perceiver.input_preprocessor.convnet.conv.weight | conv7x7
inputs/conv7x7/batch_norm:scale | image_preprocessor/~/conv2_d_downsample/~/batchnorm:scale | perceiver.input_preprocessor.convnet.batchnorm.weight | channels
inputs/conv7x7/batch_norm:offset | image_preprocessor/~/conv2_d_downsample/~/batchnorm:offset | perceiver.input_preprocessor.convnet.batchnorm.bias | channels
inputs/conv7x7/batch_norm:mean | image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/mean_ema:average | perceiver.input_preprocessor.convnet.batchnorm.running_mean | channels
inputs/conv7x7/batch_norm:variance | image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/var_ema:average | perceiver.input_preprocessor.convnet.batchnorm.running_var | channels
inputs/conv7x7/batch_norm:mean_hidden | image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/mean_ema:hidden | - | channels
inputs/conv7x7/batch_norm:variance_hidden | image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/var_ema:hidden | - | channels
inputs/conv7x7/batch_norm:counter | image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/mean_ema:counter | perceiver.input_preprocessor.convnet.batchnorm.num_batches_tracked | counter
inputs/conv7x7/batch_norm:counter | image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/var_ema:counter | perceiver.input_preprocessor.convnet.batchnorm.num_batches_tracked | counter
"""  # noqa: E501
FLOW = """
inputs/projection:w | image_preprocessor/patches_linear:w | perceiver.input_preprocessor.conv_after_patches.weight | linear
inputs/projection:b | image_preprocessor/patches_linear:b | perceiver.input_preprocessor.conv_after_patches.bias | vector
decoder/output:w | flow_decoder/~/basic_decoder/output:w | perceiver.decoder.decoder.final_layer.weight | linear
decoder/output:b | flow_decoder/~/basic_decoder/output:b | perceiver.decoder.decoder.final_layer.bias | vector
"""  # noqa: E501
LANGUAGE = """
inputs:embeddings | embed:embeddings | perceiver.input_preprocessor.embeddings.weight | matrix
inputs/position_encoding:positions | trainable_position_encoding:pos_embs | perceiver.input_preprocessor.position_embeddings.weight | matrix
output_queries:positions | basic_decoder/~/trainable_position_encoding:pos_embs | perceiver.decoder.output_position_encodings.position_embeddings | matrix
output:b | embedding_decoder:bias | embedding_decoder.bias | vector
"""  # noqa: E501
VIDEO = """
inputs:audio_padding | multimodal_preprocessor/audio_padding:pos_embs | perceiver.input_preprocessor.padding.audio | row
inputs:video_padding | multimodal_preprocessor/image_padding:pos_embs | perceiver.input_preprocessor.padding.image | row
inputs:label_padding | multimodal_preprocessor/label_padding:pos_embs | perceiver.input_preprocessor.padding.label | row
inputs:audio_mask_token | multimodal_preprocessor/audio_mask_token:pos_embs | perceiver.input_preprocessor.mask.audio | row
inputs:video_mask_token | multimodal_preprocessor/image_mask_token:pos_embs | perceiver.input_preprocessor.mask.image | row
inputs:label_mask_token | multimodal_preprocessor/label_mask_token:pos_embs | perceiver.input_preprocessor.mask.label | row
output_queries:audio_padding | multimodal_decoder/~decoder_query/audio_padding:pos_embs | perceiver.decoder.padding.audio | row
output_queries:video_padding | multimodal_decoder/~decoder_query/image_padding:pos_embs | perceiver.decoder.padding.image | row
output_queries:label_padding | multimodal_decoder/~decoder_query/label_padding:pos_embs | perceiver.decoder.padding.label | row
label_query:positions | classification_decoder/~/basic_decoder/~/trainable_position_encoding:pos_embs | perceiver.decoder.modalities.label.decoder.output_position_encodings.position_embeddings | matrix
decoder/output:w | multimodal_decoder/~/basic_decoder/output:w | perceiver.decoder.decoder.final_layer.weight | linear
decoder/output:b | multimodal_decoder/~/basic_decoder/output:b | perceiver.decoder.decoder.final_layer.bias | vector
audio_output:w | audio_postprocessor/linear:w | perceiver.output_postprocessor.modalities.audio.classifier.weight | linear
audio_output:b | audio_postprocessor/linear:b | perceiver.output_postprocessor.modalities.audio.classifier.bias | vector
video_output:w | projection_postprocessor/linear:w | perceiver.output_postprocessor.modalities.image.classifier.weight | linear
video_output:b | projection_postprocessor/linear:b | perceiver.output_postprocessor.modalities.image.classifier.bias | vector
label_output:w | classification_postprocessor/linear:w | perceiver.output_postprocessor.modalities.label.classifier.weight | linear
label_output:b | classification_postprocessor/linear:b | perceiver.output_postprocessor.modalities.label.classifier.bias | vector
"""  # noqa: E501

CLASS_DECODER = (
    'decoder/query_decoder/cross_attend/',
    'classification_decoder/~/basic_decoder/cross_attention/',
    'perceiver.decoder.decoder.decoding_cross_attention.',
)
DECODERS = {
    'imagenet_fourier': (IMAGENET, *CLASS_DECODER),
    'imagenet_learned': (IMAGENET + LEARNED, *CLASS_DECODER),
    'imagenet_conv': (IMAGENET + CONV, *CLASS_DECODER),
    'optical_flow': (
        FLOW,
        'decoder/cross_attend/',
        'flow_decoder/~/basic_decoder/cross_attention/',
        'perceiver.decoder.decoder.decoding_cross_attention.',
    ),
    'mlm_bytes': (
        LANGUAGE,
        'decoder/cross_attend/',
        'basic_decoder/cross_attention/',
        'perceiver.decoder.decoding_cross_attention.',
    ),
    'video_autoencoding': (
        VIDEO,
        'decoder/cross_attend/',
        'multimodal_decoder/~/basic_decoder/cross_attention/',
        'perceiver.decoder.decoder.decoding_cross_attention.',
    ),
}
SHAPES = {  # ours
    'vector': (5,),
    'matrix': (3, 5),
    'linear': (3, 5),
    'conv1x1': (3, 5),
    'conv7x7': (7, 7, 3, 5),
    'channels': (5,),
    'row': (5,),
    'counter': (),
}
DEEPMIND = {
    'conv1x1': lambda x: x[None, None],
    'channels': lambda x: x[None, None, None],
    'row': lambda x: x[None],
}
HUGGINGFACE = {
    'linear': lambda x: x.T,
    'conv1x1': lambda x: x.T[:, :, None, None],
    'conv7x7': lambda x: np.einsum('hwio->oiwh', x),
    'row': lambda x: x[None],
    'counter': np.int64,
}
STATE = ('mean', 'variance', 'mean_hidden', 'variance_hidden', 'counter')


def rows(text, *prefixes):
    for line in filter(None, text.splitlines()):
        *names, layout = (field.strip() for field in line.split('|'))
        yield *(prefix + name for prefix, name in zip(prefixes, names, strict=True)), layout


def three_trees(kind):
    """A tiny model of a kind with two self-attends: ours, DeepMind's and Hugging Face's arrays."""
    text, *decoder = DECODERS[kind]
    encoder = 'encoder' if kind == 'video_autoencoding' else 'perceiver_encoder'
    table = [
        (
            'encoder:latents',
            f'{encoder}/~/trainable_position_encoding:pos_embs',
            'perceiver.embeddings.latents',
            'matrix',
        ),
        *rows(
            CROSS_ATTEND,
            'encoder/cross_attend_1/',
            f'{encoder}/~/cross_attention/',
            'perceiver.encoder.cross_attention.',
        ),
        *rows(
            SELF_ATTEND,
            'encoder/block_1/self_attend_1/',
            f'{encoder}/~/self_attention/',
            'perceiver.encoder.self_attends.0.',
        ),
        *rows(
            SELF_ATTEND,
            'encoder/block_1/self_attend_2/',
            f'{encoder}/~/self_attention_1/',
            'perceiver.encoder.self_attends.1.',
        ),
        *rows(CROSS_ATTEND, *decoder),
        *rows(text, '', '', ''),
    ]
    random = np.random.default_rng(3)
    ours, deepmind, hugging_face = {}, {}, {}
    for our_name, deepmind_name, hugging_face_name, layout in table:
        if layout == 'counter':
            array = np.array(7, np.int32)
        else:
            array = random.normal(size=SHAPES[layout]).astype(np.float32)
        ours[our_name] = array
        deepmind[deepmind_name] = DEEPMIND.get(layout, np.asarray)(array)
        if hugging_face_name != '-':
            hugging_face[hugging_face_name] = HUGGINGFACE.get(layout, np.asarray)(array)
    return ours, deepmind, hugging_face


def as_trees(arrays):
    """Haiku's trees of parameters and state, from names 'module:parameter'."""
    params, state = {}, {}
    for name, array in arrays.items():
        module, parameter = name.split(':')
        tree = state if '_ema' in module or parameter in STATE else params
        tree.setdefault(module, {})[parameter] = array
    return params, state


def assert_same(ours, theirs):
    """The same names, dtypes and bits, in a nest of dictionaries and tuples."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            assert_same(ours[name], theirs[name])
    elif isinstance(theirs, tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize('kind', DECODERS)
def test_deepminds_names_and_layouts(kind):
    ours, deepmind, _ = map(dict, three_trees(kind))
    ours, deepmind = as_trees(ours), as_trees(deepmind)
    assert_same(translation.from_deepmind(*deepmind), ours)
    assert_same(translation.to_deepmind(*ours), deepmind)
    assert bool(deepmind[1]) == (kind == 'imagenet_conv')


@pytest.mark.parametrize('kind', DECODERS)
def test_hugging_faces_names_and_layouts(kind):
    ours, _, tensors = three_trees(kind)
    hidden = {f'inputs/conv7x7/batch_norm:{n}' for n in ('mean_hidden', 'variance_hidden')}
    params, state = as_trees({name: x for name, x in ours.items() if name not in hidden})
    read_params, read_state = translation.from_huggingface(tensors)
    for name in hidden & ours.keys():
        read_state['inputs/conv7x7/batch_norm'].pop(name.split(':')[1])
    assert_same((read_params, read_state), (params, state))
    assert all(x.flags.c_contiguous for x in jax.tree.leaves(read_params))
    assert_same(translation.to_huggingface(*as_trees(ours)), tensors)
    # A PerceiverModel alone saves its tensors without the prefix.
    bare = {name.removeprefix('perceiver.'): tensor for name, tensor in tensors.items()}
    assert_same(translation.from_huggingface(bare)[0], params)


@pytest.mark.parametrize('kind', DECODERS)
def test_a_kind_is_recognised_by_any_names(kind):
    for arrays in three_trees(kind):
        assert translation.recognise(arrays) == kind
        assert translation.recognise(iter(sorted(arrays)[3:])) == kind  # a few may be missing


def test_unknown_models_are_not_recognised():
    with pytest.raises(ValueError, match='bert.embeddings, bert.encoder'):
        translation.recognise(['bert.embeddings', 'bert.encoder'])
    with pytest.raises(ValueError, match='no Perceiver'):
        translation.from_deepmind({})


@pytest.mark.parametrize('kind', DECODERS)
def test_our_name(kind):
    ours, deepmind, _ = three_trees(kind)
    for name in deepmind:
        assert ':'.join(translation.our_name(kind, *name.split(':'))) in ours


def test_self_attends_are_numbered():
    def our_module(module):
        return translation.our_name('mlm_bytes', f'perceiver_encoder/~/{module}/mlp/linear', 'w')[0]

    assert our_module('self_attention') == 'encoder/block_1/self_attend_1/mlp/hidden'
    assert our_module('self_attention_1') == 'encoder/block_1/self_attend_2/mlp/hidden'
    assert our_module('self_attention_25') == 'encoder/block_1/self_attend_26/mlp/hidden'
    for module in ('self_attention_0', 'self_attention_01', 'self_attention_x', '*'):
        with pytest.raises(ValueError, match='is no parameter'):
            our_module(module)
    with pytest.raises(ValueError, match="'perceiver'"):
        translation.our_name('perceiver', 'embed', 'embeddings')


def test_twelve_self_attends_come_back_in_order():
    names = [f'perceiver_encoder/~/self_attention{"_" * (k > 0)}{k or ""}' for k in range(12)]
    params = as_trees(three_trees('imagenet_fourier')[1])[0]
    params |= {name + '/mlp/linear': {'b': np.array([k])} for k, name in enumerate(names)}
    ours, _ = translation.from_deepmind(params)
    for k in range(12):
        assert ours[f'encoder/block_1/self_attend_{k + 1}/mlp/hidden']['b'] == [k]
    tensors = translation.to_huggingface(ours)
    for k in range(12):
        assert tensors[f'perceiver.encoder.self_attends.{k}.mlp.dense1.bias'] == [k]
    assert_same(translation.to_deepmind(ours)[0], params)


@pytest.mark.parametrize('conv_kernel, order', [('hub', (1, 0)), ('transformers', (0, 1))])
def test_layout_of_the_7x7_kernel(conv_kernel, order):
    ours, _, tensors = three_trees('imagenet_conv')
    kernel = ours['inputs/conv7x7:w']
    name = 'perceiver.input_preprocessor.convnet.conv.weight'
    theirs = np.zeros((5, 3, 7, 7), np.float32)
    for place in np.ndindex(7, 7):
        theirs[(slice(None), slice(None), *(place[axis] for axis in order))] = kernel[place].T
    written = translation.to_huggingface(*as_trees(ours), conv_kernel=conv_kernel)[name]
    np.testing.assert_array_equal(written, theirs)
    params, _ = translation.from_huggingface({**tensors, name: theirs}, conv_kernel=conv_kernel)
    np.testing.assert_array_equal(params['inputs/conv7x7']['w'], kernel)


def test_unknown_kernel_layout():
    with pytest.raises(ValueError, match="'torch'"):
        translation.from_huggingface(three_trees('imagenet_conv')[2], conv_kernel='torch')


@pytest.mark.parametrize('tracked, counter', [(0, 1), (1, 1), (7, 7)])
def test_hidden_averages_follow_from_the_counter(tracked, counter):
    _, _, tensors = three_trees('imagenet_conv')
    norm = 'perceiver.input_preprocessor.convnet.batchnorm'
    tensors[f'{norm}.num_batches_tracked'] = np.array(tracked)
    _, state = translation.from_huggingface(tensors)
    state = state['inputs/conv7x7/batch_norm']
    assert state['counter'] == counter
    assert state['counter'].dtype == np.int32 and state['counter'].shape == ()
    for ours, theirs in (('mean', 'running_mean'), ('variance', 'running_var')):
        # Haiku's average of a constant: it starts at 0 and moves a tenth of the way each time.
        hidden = np.zeros(5)
        for _ in range(counter):
            hidden = 0.9 * hidden + 0.1 * tensors[f'{norm}.{theirs}']
        np.testing.assert_allclose(state[f'{ours}_hidden'], hidden, rtol=1e-6)
        assert state[f'{ours}_hidden'].dtype == np.float32


def test_a_counter_of_another_shape_is_left_for_check_fit_to_name():
    _, _, tensors = three_trees('imagenet_conv')
    name = 'perceiver.input_preprocessor.convnet.batchnorm.num_batches_tracked'
    params, state = translation.from_huggingface({**tensors, name: np.array([3])})
    expected = translation.from_huggingface(tensors)
    with pytest.raises(ValueError, match=r'counter \(1,\), not \(\)'):
        translation.check_fit(params, state, *expected, 'file')


def test_the_two_counters_must_agree():
    params, state = as_trees(three_trees('imagenet_conv')[1])
    module = 'image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/var_ema'
    state[module]['counter'] = np.array(8, np.int32)
    with pytest.raises(ValueError, match=f'{module}:counter is 8'):
        translation.from_deepmind(params, state)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_short_floats_are_widened(dtype, tmp_path):
    ours, deepmind, tensors = three_trees('optical_flow')
    expected, _ = as_trees({name: x.astype(dtype).astype(np.float32) for name, x in ours.items()})
    short, _ = as_trees({name: x.astype(dtype) for name, x in deepmind.items()})
    assert_same(translation.from_deepmind(short)[0], expected)
    save_file(
        {name: x.astype(dtype, order='C') for name, x in tensors.items()},
        tmp_path / 'model.safetensors',
    )
    tensors = foreign_files.read_huggingface(tmp_path)
    assert {x.dtype for x in tensors.values()} == {np.dtype(np.float32)}
    assert_same(translation.from_huggingface(tensors)[0], expected)


def test_names_that_do_not_belong_are_listed():
    _, deepmind, tensors = three_trees('optical_flow')
    params, _ = as_trees(deepmind | {f'raft/linear_{i}:w': np.zeros(3) for i in range(11)})
    listed = ', '.join(f'raft/linear_{i}:w' for i in range(9))
    with pytest.raises(ValueError, match=f'11 .* optical_flow, .*: {listed} and 2 more'):
        translation.from_deepmind(params)
    with pytest.raises(ValueError, match='do not belong to optical_flow.*position_ids'):
        translation.from_huggingface({**tensors, 'perceiver.position_ids': np.arange(3)})


def test_layouts_that_do_not_belong_are_named():
    _, deepmind, tensors = three_trees('imagenet_learned')
    name = 'image_preprocessor/~/conv2_d:w'
    for shape in ((3, 3, 3, 5), (5,)):
        with pytest.raises(ValueError, match=rf'{name} is \({shape[0]}.* conv1x1 of deepmind'):
            translation.from_deepmind(as_trees(deepmind | {name: np.zeros(shape)})[0])
    name = 'perceiver.decoder.decoder.final_layer.weight'
    with pytest.raises(ValueError, match=rf'{name} is \(5,\)'):
        translation.from_huggingface(tensors | {name: np.zeros(5)})


def test_models_that_were_not_released_have_no_foreign_names():
    params, state = as_trees(three_trees('imagenet_fourier')[0])
    average = {
        module.replace('decoder/query_decoder/output', 'decoder/output'): values
        for module, values in params.items()
        if 'cross_attend' not in module or 'encoder' in module
    }
    del average['decoder']
    for convert in (translation.to_deepmind, translation.to_huggingface):
        with pytest.raises(ValueError, match='none of the models that were released'):
            convert(average, state)


def test_check_fit_names_every_difference():
    params, state = as_trees(three_trees('imagenet_conv')[0])
    translation.check_fit(params, state, params, state, 'a.pystate')
    found = {**params, 'encoder': {'latents': np.zeros((3, 7))}, 'extra': {'w': np.zeros(2)}}
    with pytest.raises(ValueError) as error:
        translation.check_fit(found, {}, params, state, 'a.pystate')
    norm = 'inputs/conv7x7/batch_norm'
    missing = ', '.join(f'{norm}:{name}' for name in sorted(STATE))
    assert str(error.value) == (
        f'a.pystate does not fit the model. missing: {missing}; left over: extra:w; '
        'of another shape: encoder:latents (3, 7), not (3, 5).'
    )


def pickle_with(monkeypatch, module, name, make, protocol=2):
    """A pickle of `make(class)`, with a class of some name in a module that need not exist."""
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    stand_in = type(name, (), {'__module__': module, '__qualname__': name})
    setattr(sys.modules[module], name, stand_in)
    data = pickle.dumps(make(stand_in), protocol)
    monkeypatch.undo()
    return data


@pytest.fixture
def write(tmp_path):
    def write(data, name='weights.pystate'):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


PARAMS = {
    'embed': {'embeddings': np.arange(6, dtype=np.float32).reshape(2, 3)},
    'linear': {'w': np.arange(6, dtype=np.float32).reshape(2, 3).T, 'b': np.array([2.0, 3.0])},
}
STATES = {'norm': {'counter': np.array(7, np.int32)}}


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_any_protocol(protocol, write):
    path = write(pickle.dumps({'params': PARAMS, 'state': STATES}, protocol))
    assert_same(foreign_files.read_deepmind(path), (PARAMS, STATES))
    path = write(pickle.dumps(collections.OrderedDict(PARAMS), protocol))
    assert_same(foreign_files.read_deepmind(path), (PARAMS, {}))


@pytest.mark.parametrize(
    'array',
    [
        np.array([[1, 2, 3]], '>f4'),
        np.array([True, False]),
        np.arange(30).reshape(2, 3, 5).transpose(1, 0, 2),
        np.float32(3),
        np.array(7, np.int64),
    ],
)
def test_arrays_of_any_order_and_size(array, write):
    path = write(pickle.dumps({'a': {'w': array}}, pickle.HIGHEST_PROTOCOL))
    assert_same(foreign_files.read_deepmind(path)[0]['a']['w'], np.asarray(array))


class Mapping:
    """Pickled as Haiku's mappings are: a class that is called with a dictionary."""

    def __init__(self, kind, mapping):
        self.kind, self.mapping = kind, mapping

    def __reduce__(self):
        return self.kind, (self.mapping,)


@pytest.mark.parametrize('name', ['FlatMapping', 'FlatMap', 'frozendict'])
def test_haikus_mappings_of_all_times(name, monkeypatch, write):
    def make(kind):
        return Mapping(kind, {module: Mapping(kind, x) for module, x in PARAMS.items()})

    path = write(pickle_with(monkeypatch, 'haiku._src.data_structures', name, make))
    assert b'haiku._src.data_structures' in path.read_bytes()
    assert_same(foreign_files.read_deepmind(path), (PARAMS, {}))


def test_haikus_mappings_of_today(write):
    path = write(pickle.dumps(hk.data_structures.to_immutable_dict(PARAMS)))
    assert b'FlatMapping' in path.read_bytes()
    assert_same(foreign_files.read_deepmind(path), (PARAMS, {}))


class DeviceArray:
    """Pickled as JAX's arrays were: what NumPy reduces to, and about the shape."""

    def __init__(self, reconstruct, array):
        self.reconstruct, self.array = reconstruct, array

    def __reduce__(self):
        return self.reconstruct, (*self.array.__reduce__(), {'weak_type': False})


def test_jaxs_arrays_of_old(monkeypatch, write):
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    path = write(
        pickle_with(
            monkeypatch,
            'jax._src.device_array',
            'reconstruct_device_array',
            lambda reconstruct: {'linear': {'w': DeviceArray(reconstruct, array)}},
        )
    )
    assert b'jax._src.device_array' in path.read_bytes()
    assert_same(foreign_files.read_deepmind(path)[0]['linear']['w'], array)


def test_jaxs_arrays_of_today(write):
    path = write(pickle.dumps({'linear': {'w': jnp.arange(3), 'b': jnp.float32(2)}}))
    assert b'_reconstruct_array' in path.read_bytes()
    expected = {'w': np.arange(3, dtype=np.int32), 'b': np.array(2, np.float32)}
    assert_same(foreign_files.read_deepmind(path)[0], {'linear': expected})


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Build(Call):
    """Pickled as an object whose state is set afterwards."""

    def __reduce__(self):
        *arguments, state = self.arguments
        return self.function, tuple(arguments), state


VOID = np.dtype('V8')
HOSTILE = {  # what is in a file, given another file that it would make
    'system': lambda path: Call(os.system, f'touch {path}'),
    'eval': lambda path: Call(eval, f"open({str(path)!r}, 'w')"),
    'exec': lambda path: {'a': {'w': Call(exec, f"open({str(path)!r}, 'w')")}},
    'getattr': lambda path: Call(getattr, np.ndarray, 'tofile'),
    'nested': lambda path: {'a': {'w': np.array([Call(os.system, f'touch {path}'), 2], object)}},
    'object': lambda path: {'a': {'w': np.array([None, 'a'], object)}},
    'void': lambda path: {'a': {'w': np.zeros(2, VOID)}},
    'structure': lambda path: {'a': {'w': np.zeros(2, [('x', 'f4'), ('y', 'O')])}},
}
REFUSED = {  # what the error says of it
    'system': r'asks for posix\.system, ',
    'eval': r'asks for (builtins|__builtin__)\.eval, ',
    'exec': r'asks for (builtins|__builtin__)\.exec, ',
    'getattr': r'asks for (builtins|__builtin__)\.getattr, ',
    'nested': "dtype 'O8'",
    'object': "dtype 'O8'",
    'void': "dtype 'V8'",
    'structure': "dtype 'V12'",
}


@pytest.mark.parametrize('protocol', [2, 4, 5])
@pytest.mark.parametrize('attack', HOSTILE)
def test_nothing_in_a_hostile_file_is_run(attack, protocol, write, tmp_path):
    made = tmp_path / 'made'
    path = write(pickle.dumps(HOSTILE[attack](made), protocol))
    with pytest.raises(ValueError, match=REFUSED[attack]) as error:
        foreign_files.read_deepmind(path)
    assert str(path) in str(error.value) and 'nothing in the file was run' in str(error.value)
    assert not made.exists()
    if attack in ('system', 'eval', 'nested'):  # they would, if they could
        pickle.loads(path.read_bytes())
        assert made.exists()


@pytest.mark.parametrize(
    'module, name',
    [
        ('haiku._src.data_structures', 'Stack'),
        ('haiku._src.data_structures', 'FlatMapping.keys'),
        ('haiku._src.transform', 'FlatMapping'),
        ('numpy.core.multiarray', 'fromfile'),
        ('numpy', 'load'),
        ('jax._src.array', 'ArrayImpl'),
        ('builtins', 'dict'),
        ('copyreg', '_reconstructor'),
    ],
)
def test_other_names_of_admitted_packages_are_refused(module, name, write):
    path = write(b'\x80\x04c' + f'{module}\n{name}\n.'.encode())
    with pytest.raises(ValueError, match=f'asks for {module}.{name}, '):
        foreign_files.read_deepmind(path)


def test_what_a_pickle_sets_on_a_function_is_gone_with_it(write):
    scalar = b'\x80\x04cnumpy.core.multiarray\nscalar\n'
    defaults = b'N}\x8c\x0c__defaults__(K\x01K\x02ts\x86'  # (None, {'__defaults__': (1, 2)})
    called = b')R.'
    with pytest.raises(ValueError, match='TypeError'):  # it did set them: 1 is no dtype
        foreign_files.read_deepmind(write(scalar + defaults + b'b' + called))
    with pytest.raises(ValueError, match='missing 2 required positional arguments'):
        foreign_files.read_deepmind(write(scalar + called))


@pytest.mark.parametrize(
    'state',
    [
        (1, (3,), np.dtype('f4'), False, b'too short'),
        (1, (-1, 4), np.dtype('f4'), False, bytes(12)),
        (1, (3,), np.dtype('f4'), False, [None] * 3),
    ],
)
def test_arrays_whose_parts_do_not_fit(state, write):
    rebuild = np.empty(0).__reduce__()[0]
    array = Build(rebuild, np.ndarray, (0,), b'b', state)
    with pytest.raises(ValueError, match='damaged'):
        foreign_files.read_deepmind(write(pickle.dumps({'a': {'w': array}})))


@pytest.mark.parametrize('content', [[1, 2], 'text', {'a': 1}, {'a': {'w': 'text'}}, {'a': PARAMS}])
def test_pickles_of_something_else(content, write):
    path = write(pickle.dumps(content))
    with pytest.raises(ValueError, match=f'{path} is not a pickle of DeepMind'):
        foreign_files.read_deepmind(path)


def test_damaged_pickles(write, tmp_path):
    data = pickle.dumps({'params': PARAMS, 'state': STATES})
    for damaged in (b'', b'<html>', b'PK\x03\x04', *(data[:n] for n in range(1, len(data)))):
        path = write(damaged)
        with pytest.raises(ValueError, match=f'{path} is not a pickle'):
            foreign_files.read_deepmind(path)
    with pytest.raises(ValueError, match='none.pickle does not exist'):
        foreign_files.read_deepmind(tmp_path / 'none.pickle')


@pytest.mark.parametrize('kind', DECODERS)
def test_files_for_deepmind(kind, tmp_path):
    params, state = as_trees(three_trees(kind)[1])
    params['extra'] = {'w': np.arange(6.0).reshape(2, 3).T}  # not in C order
    path = tmp_path / 'weights.pystate'
    foreign_files.write_deepmind(path, params, state)
    content = {'params': params, 'state': state} if kind.startswith('imagenet') else params
    data = path.read_bytes()
    assert_same(pickle.loads(data), content)
    assert_same(foreign_files.read_deepmind(path), (params, state))
    assert data[:2] == b'\x80\x04'
    assert b'_core' not in data and b'multiarray' not in data  # NumPy's of other versions
    assert os.listdir(tmp_path) == ['weights.pystate']


def test_files_for_deepmind_are_of_its_models(tmp_path):
    with pytest.raises(ValueError, match='no Perceiver'):
        foreign_files.write_deepmind(tmp_path / 'a', *as_trees(three_trees('optical_flow')[0]))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('kind', DECODERS)
def test_files_for_hugging_face(kind, tmp_path):
    _, _, tensors = three_trees(kind)  # many of them are transposed views
    path = tmp_path / 'model.safetensors'
    foreign_files.write_huggingface(path, tensors)
    assert_same(load_file(path), tensors)
    assert_same(foreign_files.read_huggingface(path), tensors)
    assert_same(foreign_files.read_huggingface(tmp_path), tensors)
    with path.open('rb') as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), 'little')))
    assert header['__metadata__'] == {'format': 'pt'}
    assert os.listdir(tmp_path) == ['model.safetensors']


def test_a_failed_write_leaves_the_former_file(tmp_path):
    path = tmp_path / 'model.safetensors'
    foreign_files.write_huggingface(path, {'a': np.zeros(3)})
    before = path.read_bytes()
    with pytest.raises(Exception, match='str'):
        foreign_files.write_huggingface(path, {'a': np.array(['text'])})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['model.safetensors']


@pytest.fixture
def sharded(tmp_path):
    """A folder with a model in two files and their index."""
    save_file({'a': np.zeros(3), 'b': np.ones(5)}, tmp_path / 'model-1.safetensors')
    save_file({'c': np.ones(2)}, tmp_path / 'model-2.safetensors')
    files = dict(a='model-1.safetensors', b='model-1.safetensors', c='model-2.safetensors')
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': files}))
    return tmp_path


def test_tensors_of_several_files(sharded):
    expected = {'a': np.zeros(3), 'b': np.ones(5), 'c': np.ones(2)}
    assert_same(foreign_files.read_huggingface(sharded), expected)
    index = sharded / 'model.safetensors.index.json'
    assert_same(foreign_files.read_huggingface(index), expected)


def test_several_files_must_be_complete(sharded):
    save_file({'a': np.zeros(3)}, sharded / 'model-1.safetensors')
    with pytest.raises(ValueError, match='index.json promises.*: b.$'):
        foreign_files.read_huggingface(sharded)
    (sharded / 'model-2.safetensors').unlink()
    with pytest.raises(ValueError, match='model-2.safetensors does not exist'):
        foreign_files.read_huggingface(sharded)
    for text in ('{', '[]', '{"weight_map": {"a": 3}}'):
        (sharded / 'model.safetensors.index.json').write_text(text)
        with pytest.raises(ValueError, match='index.json is not an index'):
            foreign_files.read_huggingface(sharded)


def test_torchs_file_needs_torch(write, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(ValueError, match=r'pytorch_model.bin can only be read with torch'):
        foreign_files.read_huggingface(write(b'', 'pytorch_model.bin').parent)


def test_torch_is_told_to_run_nothing(write, monkeypatch):
    def load(path, **options):
        asked.update(options)
        raise pickle.UnpicklingError('set weights_only=False')

    asked = {}
    torch = types.SimpleNamespace(load=load, float16=None, bfloat16=None)
    monkeypatch.setitem(sys.modules, 'torch', torch)
    with pytest.raises(ValueError, match=r'a.bin is damaged, or holds more .* UnpicklingError; '):
        foreign_files.read_huggingface(write(b'', 'a.bin'))
    assert asked == {'map_location': 'cpu', 'weights_only': True}


def test_other_files_for_hugging_face(write, tmp_path):
    with pytest.raises(ValueError, match=r'holds none of model.safetensors, '):
        foreign_files.read_huggingface(tmp_path)
    with pytest.raises(ValueError, match=r'none.safetensors does not exist'):
        foreign_files.read_huggingface(tmp_path / 'none.safetensors')
    with pytest.raises(ValueError, match=r'model.h5 is neither'):
        foreign_files.read_huggingface(write(b'', 'model.h5'))
    for data in (b'', b'<html>', b'\x10' + bytes(30)):
        with pytest.raises(ValueError, match=r'a.safetensors is not a safetensors file'):
            foreign_files.read_huggingface(write(data, 'a.safetensors'))
