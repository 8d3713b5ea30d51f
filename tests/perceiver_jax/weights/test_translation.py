"""Foreign weights: the names and layouts of DeepMind and Hugging Face."""

import jax
import ml_dtypes
import numpy as np
import pytest

from perceiver_jax.weights import translation
from perceiver_jax.weights.trees import check_fit
from tests.toys.foreign_weights import DECODERS, as_trees, assert_same, three_trees
from tests.toys.hanging import REPEATED, guard


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


@pytest.mark.parametrize('naming', ['ours', 'deepmind', 'huggingface'])
def test_no_name_hangs_the_patterns(naming):
    with guard():
        for repeated in (text.decode() for text in REPEATED):
            for start in ('', 'a/self_attend_', 'a/self_attention_', 'a.self_attends.'):
                for end in ('', '/b', '.b'):
                    with pytest.raises(ValueError):
                        translation.recognise([start + repeated + end], naming)


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
        check_fit(params, state, *expected, 'file')


def test_the_two_counters_must_agree():
    params, state = as_trees(three_trees('imagenet_conv')[1])
    module = 'image_preprocessor/~/conv2_d_downsample/~/batchnorm/~/var_ema'
    state[module]['counter'] = np.array(8, np.int32)
    with pytest.raises(ValueError, match=f'{module}:counter is 8'):
        translation.from_deepmind(params, state)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_short_floats_are_widened(dtype):
    ours, deepmind, tensors = three_trees('optical_flow')
    expected, _ = as_trees({name: x.astype(dtype).astype(np.float32) for name, x in ours.items()})
    short, _ = as_trees({name: x.astype(dtype) for name, x in deepmind.items()})
    assert_same(translation.from_deepmind(short)[0], expected)
    short_tensors = {name: x.astype(dtype) for name, x in tensors.items()}
    assert_same(translation.from_huggingface(short_tensors)[0], expected)


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
