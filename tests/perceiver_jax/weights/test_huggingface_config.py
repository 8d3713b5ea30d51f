import copy
import dataclasses
import json

import pytest

from perceiver_jax import RELEASED, Refused
from perceiver_jax.weights.huggingface_config import differing_keys, from_config, to_config
from perceiver_jax.weights.loading import carries_arguments, load
from tests.toys.huggingface_folder import config_of, small_model, write_folder

# What the published config.json of this class has; the file for Fourier positions has the size of
# images for learned ones.
FOURIER = dict(
    architectures=['PerceiverForImageClassificationFourier'],
    model_type='perceiver',
    num_latents=512,
    d_latents=1024,
    num_blocks=8,
    num_self_attends_per_block=6,
    num_self_attention_heads=8,
    num_cross_attention_heads=1,
    qk_channels=None,
    v_channels=None,
    image_size=56,
    id2label={str(i): f'name {i}' for i in range(1000)},
    transformers_version='5.24.0',
)


@pytest.fixture(scope='module', params=RELEASED)
def kind(request):
    return request.param


@pytest.fixture(scope='module')
def model(kind):
    return small_model(kind)


@pytest.fixture(scope='module')
def fourier():
    return small_model('imagenet_fourier', num_heads=16)


def test_what_is_written_is_read_back(kind, model, tmp_path):
    write_folder(tmp_path, kind, model)
    loaded = load(tmp_path)
    assert loaded.arguments == model.arguments
    assert loaded.front_end == model.front_end
    assert loaded.activation == model.activation
    assert loaded.classes is None
    assert loaded.licence == ''  # these are not the released weights


def test_a_config_of_the_released_model_is_that_model():
    for kind, (_, arguments, front_end, _) in RELEASED.items():
        if kind != 'imagenet_learned':
            described = from_config(to_config(kind, arguments, front_end), kind)
            assert described[:2] == (arguments, front_end), kind
    described = from_config(FOURIER, 'imagenet_fourier')
    assert described[:2] == RELEASED['imagenet_fourier'][1:3]
    assert described.classes == [f'name {i}' for i in range(1000)]


def test_learned_positions_have_a_residual_but_where_deepmind_trained_them():
    _, arguments, front_end, _ = RELEASED['imagenet_learned']
    sizes = {key: value for key, value in FOURIER.items() if key != 'architectures'}
    assert from_config({**sizes, 'image_size': 224}, 'imagenet_learned').arguments == arguments
    for change in (dict(image_size=112), dict(num_blocks=4), dict(id2label={'0': 'a', '1': 'b'})):
        described = from_config({**sizes, 'image_size': 224, **change}, 'imagenet_learned')
        assert described.arguments['decoder']['cross_attend']['use_query_residual']
    # There is no class of transformers without one, nor does a file of these sizes say so.
    with pytest.raises(Refused, match='cross_attend.use_query_residual is False, not True'):
        to_config('imagenet_learned', arguments, front_end)
    residual = copy.deepcopy(arguments)
    residual['decoder']['cross_attend']['use_query_residual'] = True
    with pytest.raises(Refused, match='cross_attend.use_query_residual is True, not False'):
        to_config('imagenet_learned', residual, front_end)


def test_heads_do_not_show_in_shapes_and_are_read(fourier, tmp_path):
    write_folder(tmp_path, 'imagenet_fourier', fourier)
    for path in (tmp_path, tmp_path / 'model.safetensors'):
        assert load(path).arguments['encoder']['self_attend'] == dict(num_heads=16)
        assert carries_arguments(path)
    bare = copy.deepcopy(fourier.arguments)
    bare['encoder']['self_attend'] = dict(num_heads=8)
    loaded = load(tmp_path, arguments=bare)  # what the caller says goes first
    assert loaded.arguments == bare


def test_a_bare_file_carries_none(fourier, tmp_path):
    write_folder(tmp_path, 'imagenet_fourier', fourier)
    (tmp_path / 'config.json').write_text('{"task": "imagenet"}')  # a run's
    assert not carries_arguments(tmp_path / 'model.safetensors')
    assert load(tmp_path, arguments=fourier.arguments).front_end['size'] == 224
    with pytest.raises(Refused, match='does not fit the model'):
        load(tmp_path)
    fourier.save(tmp_path / 'ours')
    assert carries_arguments(tmp_path / 'ours')
    with pytest.raises(Refused, match='nowhere.pystate does not exist'):
        carries_arguments('nowhere.pystate')


def test_sizes_of_the_video_model_are_read(tmp_path):
    model = small_model('video_autoencoding')
    write_folder(tmp_path, 'video_autoencoding', model, image_size=7)
    loaded = load(tmp_path).arguments
    assert loaded['inputs']['video']['max_resolution'] == [2, 7, 7]
    assert loaded['queries']['video']['max_resolution'] == [2, 7, 7]


def test_labels_are_classes(fourier, tmp_path):
    names = dict(zip('30142', 'dabec', strict=True))
    write_folder(tmp_path, 'imagenet_fourier', fourier, id2label=names)
    loaded = load(tmp_path)
    assert loaded.classes == list('abcde')
    assert load(tmp_path, arguments=fourier.arguments).classes == loaded.classes
    # Names of other logits than the caller's.
    with pytest.raises(Refused, match=r'\(16, 5\), not \(16, 4\)'):
        load(tmp_path, arguments={**fourier.arguments, 'num_classes': 4})


@pytest.mark.parametrize(
    ('changes', 'count', 'classes'),
    [
        (dict(num_labels=3), 3, None),
        (dict(), 2, None),
        (dict(id2label={'0': 'LABEL_0', '1': 'LABEL_1', '2': 'LABEL_2'}), 3, None),
        (dict(id2label={'0': 'a', '1': 'LABEL_1', '2': 'c'}), 3, ['a', 'LABEL_1', 'c']),
        (dict(id2label={'0': 'a', '1': 'LABEL_1'}), 2, ['a']),
    ],
)
def test_number_and_names_of_labels(changes, count, classes):
    described = from_config(changes, 'imagenet_fourier')
    assert (described.arguments['num_classes'], described.classes) == (count, classes)


def test_fewer_names_than_logits_and_the_kind_of_problem_are_written(fourier):
    for activation in ('softmax', 'sigmoid', None):
        model = dataclasses.replace(fourier, classes=['a', 'b'], activation=activation)
        config = config_of('imagenet_fourier', model)
        assert list(config['id2label'].values()) == ['a', 'b', 'LABEL_2', 'LABEL_3', 'LABEL_4']
        described = from_config(config, 'imagenet_fourier')
        assert (described.classes, described.activation) == (['a', 'b'], activation)


def test_keys_as_wide_as_the_queries():
    config = dict(cross_attention_shape_for_attention='q', d_latents=32)
    widths = {
        'imagenet_conv': {},
        'optical_flow': dict(qk_channels=64 + 2 * 129),
        'video_autoencoding': dict(qk_channels=1024 + 2),
    }
    for kind, decoder in widths.items():
        arguments = from_config(config, kind).arguments
        assert arguments['encoder']['cross_attend']['qk_channels'] == 32
        assert decoder.items() <= arguments['decoder']['cross_attend'].items()
    config['qk_channels'] = 16
    arguments = from_config(config, 'imagenet_conv').arguments
    assert arguments['encoder']['cross_attend']['qk_channels'] == 16


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(hidden_act='relu'), "hidden_act is 'relu', expected one of gelu, gelu_python, "),
        (dict(hidden_act=['gelu']), "hidden_act is .'gelu'., expected one of"),
        (dict(cross_attention_shape_for_attention='v'), "is 'v', expected one of kv, q"),
        (dict(num_latents=0), 'num_latents is 0, expected a positive integer'),
        (dict(d_latents=True), 'd_latents is True, expected a positive integer'),
        (dict(qk_channels='8'), "qk_channels is '8', expected a positive integer"),
        (dict(use_query_residual=1), 'use_query_residual is 1, expected true or false'),
        (dict(problem_type='x'), "problem_type is 'x', expected one of None, single_label"),
        (dict(id2label={'0': 'a', '2': 'b'}), "id2label is {'0': 'a', '2': 'b'}, expected a name"),
        (dict(id2label={'0': 1}), "id2label is {'0': 1}, expected names"),
        (dict(id2label={}), 'id2label is {}, expected a name'),
        (dict(model_type='bert'), "model_type is 'bert', expected 'perceiver'"),
        (
            dict(architectures=['PerceiverForSequenceClassification']),
            'a classifier of texts: .* cannot be loaded; .* only PerceiverForMaskedLM can',
        ),
        (dict(architectures=['PerceiverModel']), 'expected one of PerceiverForImageClassification'),
        (dict(architectures=[{}]), 'architectures is .{}., expected one of'),
        (
            dict(architectures=['PerceiverForOpticalFlow']),
            'but .* has the parameters of imagenet_fourier',
        ),
        (
            dict(num_self_attention_heads=5),
            'by its config.json.: its arguments make no image_classifier',
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_its_key(fourier, tmp_path, changes, message):
    write_folder(tmp_path, 'imagenet_fourier', fourier, **changes)
    with pytest.raises(Refused, match=message):
        load(tmp_path)


def test_what_is_no_json_is_refused(fourier, tmp_path):
    write_folder(tmp_path, 'imagenet_fourier', fourier)
    (tmp_path / 'config.json').write_text('{')
    for read in (load, carries_arguments):
        with pytest.raises(Refused, match='config.json is not a config.json of transformers'):
            read(tmp_path)


@pytest.mark.parametrize(
    ('kind', 'changes', 'message'),
    [
        (
            'optical_flow',
            dict(train_size=[3]),
            r'train_size is \[3\], expected 2 positive integers',
        ),
        ('video_autoencoding', dict(output_shape=[1, 3, 20, 20]), 'output_shape is .* num_frames'),
        ('video_autoencoding', dict(output_shape=[1, 16, 8, 9]), 'output_shape is .* a square'),
        (
            'imagenet_learned',
            dict(image_size=[6, 6]),
            r'image_size is \[6, 6\], expected a positive',
        ),
    ],
)
def test_sizes_that_cannot_be_expressed(kind, changes, message):
    with pytest.raises(Refused, match=message):
        from_config(changes, kind)


@pytest.mark.parametrize(
    ('kind', 'change', 'message'),
    [
        (
            'imagenet_fourier',
            {'encoder': dict(share_blocks=False)},
            'encoder.share_blocks is False',
        ),
        ('imagenet_fourier', {'inputs': dict(num_bands=6)}, 'inputs.num_bands is 6, not 64'),
        (
            'imagenet_fourier',
            {'encoder': dict(cross_attend=dict(qk_channels=8))},
            'encoder.cross_attend.qk_channels is 8, not None',
        ),
        (
            'optical_flow',
            {'encoder': dict(cross_attend=dict(num_heads=7))},
            r'wants num_cross_attention_heads \(7\) to divide the channels of the latents \(512\)',
        ),
        ('optical_flow', {'flow_scale': 1.0}, 'flow_scale is 1.0, not 20.0'),
        ('mlm_bytes', {'decoder': dict(cross_attend={})}, 'decoder.cross_attend.num_heads is 1'),
        ('video_autoencoding', {'queries': dict(endpoint=True)}, 'queries.endpoint is True, not F'),
    ],
)
def test_a_model_that_transformers_lacks_is_refused_by_its_keys(kind, change, message):
    _, arguments, front_end, _ = RELEASED[kind]
    changed = dict(arguments)
    for part, fields in change.items():
        changed[part] = {**arguments[part], **fields} if isinstance(fields, dict) else fields
    with pytest.raises(Refused, match=message):
        to_config(kind, changed, front_end)


def test_what_only_training_needs_does_not_matter():
    _, arguments, front_end, _ = RELEASED['imagenet_fourier']
    encoder = {**arguments['encoder'], 'scan': True, 'latent_init_std': 1.0}
    encoder['self_attend'] = dict(num_heads=8, dropout_rate=0.1)
    config = to_config(
        'imagenet_fourier', {**arguments, 'encoder': encoder, 'dtype': 'bfloat16'}, front_end
    )
    assert config == to_config('imagenet_fourier', arguments, front_end)
    with pytest.raises(Refused, match='images of 1 channels'):
        to_config('imagenet_fourier', arguments, {**front_end, 'mean': [0.5]})


def test_keys_that_mean_another_model(fourier):
    config = config_of('imagenet_fourier', fourier)
    same = {**json.loads(json.dumps(config)), 'hidden_act': 'gelu', 'image_size': 56, 'more': 1}
    same.pop('cross_attention_widening_factor'), same.pop('problem_type'), same.pop('label2id')
    assert differing_keys(config, same) == []
    other = {**same, 'num_latents': 4, 'id2label': {'0': 'a'}, 'hidden_act': 'relu'}
    assert differing_keys(config, other) == ['hidden_act', 'num_latents', 'id2label']
