import copy
import dataclasses
import hashlib
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save

from perceiver_jax.models import MODELS
from perceiver_jax.weights import foreign_files, pretrained, translation
from perceiver_jax.weights.loading import load
from perceiver_jax.weights.pretrained import Pretrained, initialise

ENCODER = dict(
    num_latents=7,
    latent_channels=12,
    num_cross_attends=3,
    num_blocks=3,
    num_self_attends_per_block=1,
    self_attend=dict(num_heads=2),
)
IMAGE = dict(size=6, crop_fraction=0.9, mean=[0.5] * 3, std=[0.2] * 3)
IMAGES = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)


def image_model(seed=0, decoder=None, encoder=ENCODER, **inputs):
    inputs = inputs or dict(num_bands=2, max_resolution=[6, 6])
    arguments = dict(num_classes=5, inputs=inputs, encoder=encoder)
    if decoder is not None:
        arguments['decoder'] = decoder
    model = initialise('image_classifier', arguments, IMAGE, seed)
    if decoder is None:  # its output layer starts at zero
        w = np.random.default_rng(seed).normal(size=(12, 5)).astype(np.float32)
        model.params['decoder/output']['w'] = w
    return model


@pytest.fixture(scope='module')
def model():
    return image_model()


def test_a_model_is_called_as_a_function(model):
    logits = model(IMAGES)
    assert logits.shape == (2, 5)
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    mask = np.ones((2, 36), bool)
    np.testing.assert_allclose(model(IMAGES, input_mask=mask), logits, atol=1e-5)


def test_it_can_first_be_called_while_jax_traces():
    model = image_model()
    inside = jax.jit(lambda x: model(x))(IMAGES)
    np.testing.assert_allclose(model(IMAGES), inside, rtol=1e-5)


@pytest.mark.parametrize(
    'copied', [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_model_that_was_called_can_be_copied_and_pickled(copied):
    model = image_model()
    size = len(pickle.dumps(model))
    logits = model(IMAGES)
    model.attention('encoder/cross_attend_1', IMAGES)
    assert len(pickle.dumps(model)) == size  # what was compiled, and copied to the device, is not
    other = copied(model)
    np.testing.assert_array_equal(other(IMAGES), logits)
    assert other.front_end == model.front_end and other.activation == model.activation
    again = dataclasses.replace(copied(other), description='once more')
    np.testing.assert_array_equal(again(IMAGES), logits)


def test_it_is_shown_without_its_weights_and_called_with_arrays(model):
    assert len(repr(model)) < 700
    with pytest.raises(ValueError, match='called with arrays'):
        model('images')
    np.testing.assert_array_equal(model(IMAGES.tolist()), model(IMAGES))


def test_threads_record_apart(model):
    expected = model.attention('encoder/cross_attend_1', IMAGES)

    def work(i):
        fresh = dataclasses.replace(model)  # compiled anew
        if i % 2:
            return fresh.attention('encoder/cross_attend_1', IMAGES)
        fresh(IMAGES)
        return expected

    with ThreadPoolExecutor(4) as threads:
        for weights in threads.map(work, range(8)):
            np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_attention_of_any_cross_attend(model):
    first = model.attention('encoder/cross_attend_1', IMAGES)
    assert first.shape == (2, 1, 7, 36)
    np.testing.assert_allclose(first.sum(-1), 1, rtol=1e-5)
    logits = model.attention('encoder/cross_attend_1', IMAGES, logits=True)
    np.testing.assert_allclose(jax.nn.softmax(logits), first, rtol=1e-5)
    # The second and the third cross-attend are one module, called twice.
    second = model.attention('encoder/cross_attend_2', IMAGES)
    third = model.attention('encoder/cross_attend_2', IMAGES, call=1)
    assert np.abs(second - third).max() > 1e-4
    with pytest.raises(
        ValueError, match='encoder/cross_attend_2 is applied 2 times: there is no call 2'
    ):
        model.attention('encoder/cross_attend_2', IMAGES, call=2)
    with pytest.raises(ValueError, match=r"'encoder/cross_attend_3' attends; .*cross_attend_2"):
        model.attention('encoder/cross_attend_3', IMAGES)


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    model = dataclasses.replace(model, classes=list('abcde'), description='d', licence='l')
    model.save(tmp_path / 'deep' / 'model')
    assert sorted(p.name for p in (tmp_path / 'deep').iterdir()) == ['model']
    files = list((tmp_path / 'deep' / 'model').iterdir())
    assert len({path.stat().st_mode for path in files}) == 1  # who may read one, may read both
    loaded = load(tmp_path / 'deep' / 'model')
    for field in dataclasses.fields(Pretrained):
        if field.name not in ('params', 'state'):
            assert getattr(loaded, field.name) == getattr(model, field.name), field.name
    jax.tree.map(np.testing.assert_array_equal, loaded.params, model.params)
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))


def test_a_transposed_array_is_saved_as_it_is(model, tmp_path):
    w = np.asfortranarray(np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32))
    params = {**model.params, 'decoder/output': {**model.params['decoder/output'], 'w': w}}
    dataclasses.replace(model, params=params).save(tmp_path / 'model')
    np.testing.assert_array_equal(load(tmp_path / 'model').params['decoder/output']['w'], w)


def test_state_is_saved_too(tmp_path):
    model = image_model(contents='conv7x7', contents_channels=3, num_bands=2, max_resolution=[2, 2])
    model.state['inputs/conv7x7/batch_norm']['mean'] += 3
    model.save(tmp_path / 'model')
    loaded = load(tmp_path / 'model')
    jax.tree.map(np.testing.assert_array_equal, loaded.state, model.state)
    np.testing.assert_array_equal(loaded(IMAGES), model(IMAGES))


def test_a_folder_in_use_is_not_written_to(model, tmp_path):
    (tmp_path / 'notes.txt').write_text('mine')
    with pytest.raises(ValueError, match='exists already'):
        model.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['notes.txt']


def test_a_failure_leaves_nothing_behind(model, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError('no more')

    monkeypatch.setattr(pretrained.os, 'replace', fail)
    with pytest.raises(OSError, match='no more'):
        model.save(tmp_path / 'model')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(front_end={'size': object()}), 'model.json cannot say this model: .object'),
        (dict(front_end={'size': 6}), 'its arguments make no image_classifier'),
        (dict(classes=list('abcdef')), 'names 6 classes, and num_classes is 5'),
        (dict(classes=[1, 2]), 'classes are a list of names'),
        (dict(arguments={}), 'its arguments make no image_classifier'),
        (dict(params={}), 'does not fit the model. missing: '),
    ],
)
def test_what_load_would_refuse_is_not_saved(model, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(model, **changes).save(tmp_path / 'deep' / 'model')
    assert list(tmp_path.iterdir()) == []


def test_classes_may_be_any_sequence_of_names(model, tmp_path):
    dataclasses.replace(model, classes=tuple('abc')).save(tmp_path / 'model')
    assert load(tmp_path / 'model').classes == ['a', 'b', 'c']


def test_arguments_go_before_those_of_a_folder_of_ours(model, tmp_path):
    path = tmp_path / 'model'
    dataclasses.replace(model, classes=list('abcde')).save(path)
    arguments = {**model.arguments, 'dtype': 'bfloat16'}
    loaded = load(path, arguments=arguments, front_end={**IMAGE, 'size': 8})
    assert loaded.arguments == arguments
    assert loaded.front_end['size'] == 8
    assert loaded.classes == list('abcde')
    with pytest.raises(ValueError, match='names 5 classes, and num_classes is 4|does not fit'):
        load(path, arguments={**arguments, 'num_classes': 4})
    with pytest.raises(ValueError, match='its arguments make no image_classifier'):
        load(path, arguments=dict(num_classes=5))


def damage(path, change):
    about = json.loads((path / 'model.json').read_text())
    change(about)
    (path / 'model.json').write_text(json.dumps(about))


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda x: x.pop('function'),
            "model.json is not one of perceiver_jax 2: KeyError.'function",
        ),
        (lambda x: x.update(format='perceiver_jax 0'), 'model.json is not one of perceiver_jax 2'),
        (lambda x: x.update(sha256='0'), 'not the one that model.json was written with'),
        (
            lambda x: x['arguments'].update(num_classes=6),
            r'decoder/output:w \(12, 5\), not \(12, 6\)',
        ),
        (lambda x: x['arguments']['encoder'].update(num_blocks=0), 'num_blocks must be at least 1'),
        (lambda x: x['arguments'].update(num_latent=6), "num_latent'"),
        (lambda x: x['arguments'].update(dtype='int8'), "model.json.*: its arguments.*'int8'"),
        (lambda x: x['arguments'].update(input_mask=1), 'model.json.*: its arguments make no'),
        (lambda x: x['front_end'].update(size=0), 'model.json.*: its arguments make no'),
        (lambda x: x['front_end'].pop('mean'), 'model.json.*: its arguments make no'),
        (lambda x: x.update(classes=list('abcdef')), 'names 6 classes, and num_classes is 5'),
        (lambda x: x.update(classes='abcde'), "classes are a list of names, not 'abcde'"),
        (lambda x: x.update(classes=[1, 2, 3, 4, 5]), 'classes are a list of names, not .1, 2'),
        (lambda x: x.update(classes={'a': 0}), 'classes are a list of names, not {'),
        (
            lambda x: x['arguments']['inputs'].update(num_bands=10**9),
            'its arguments .*Fourier features with these num_bands would take',
        ),
        (
            lambda x: x['arguments']['encoder'].update(num_blocks=10**12),
            'there are 1,000,000,000,000 self-attends, expected at most',
        ),
        (
            lambda x: x['arguments']['encoder'].update(num_cross_attends=10**9),
            'there are 1,000,000,003 cross-attends and blocks, expected at most',
        ),
        (
            lambda x: x['front_end'].update(size=10**6),
            'one example of its inputs would take 12,000,000,000,000 bytes of memory',
        ),
        (lambda x: x['front_end'].update(size=10**4000), 'more than 10[*][*]18 bytes of memory'),
        (lambda x: x.update(function=['optical_flow']), 'there is no model .*optical_flow'),
        (lambda x: x.update(function='eval'), "there is no model 'eval'"),
    ],
)
def test_a_damaged_folder_says_what_is_wrong(model, tmp_path, change, message):
    model.save(tmp_path / 'model')
    damage(tmp_path / 'model', change)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / 'model')


def test_a_nested_description_is_refused(model, tmp_path):
    model.save(tmp_path / 'model')
    (tmp_path / 'model' / 'model.json').write_text('[' * 100_000)
    with pytest.raises(ValueError, match='model.json is not one of perceiver_jax 2: .* recursion'):
        load(tmp_path / 'model')


def test_damaged_weights_are_refused(model, tmp_path):
    model.save(tmp_path / 'model')
    weights = tmp_path / 'model' / 'weights.safetensors'
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match='weights.safetensors is missing or not the one'):
        load(tmp_path / 'model')


def test_parts_of_a_model_and_runs_are_sent_where_they_load(model, tmp_path):
    model.save(tmp_path / 'model')
    for part in ('weights.safetensors', 'model.json'):
        with pytest.raises(ValueError, match=f'load its folder, {tmp_path}/model'):
            load(tmp_path / 'model' / part)
    (tmp_path / 'run' / 'checkpoints').mkdir(parents=True)
    with pytest.raises(ValueError, match='is a run: `experiments.open_model.open_model` loads it'):
        load(tmp_path / 'run')


@pytest.mark.parametrize(
    'name, value, message',
    [
        ('params:decoder/output:w', np.zeros((12, 5), np.int32), 'w is int32, not float32'),
        ('weights', np.zeros(3), 'something else than weights'),
    ],
)
def test_weights_of_another_kind_are_refused(model, tmp_path, name, value, message):
    path = tmp_path / 'model'
    model.save(path)
    arrays = load_file(path / 'weights.safetensors') | {name: value}
    content = save(arrays)
    (path / 'weights.safetensors').write_bytes(content)
    damage(path, lambda about: about.update(sha256=hashlib.sha256(content).hexdigest()))
    with pytest.raises(ValueError, match=message):
        load(path)


def test_no_such_file():
    with pytest.raises(ValueError, match='nowhere.pystate does not exist'):
        load('nowhere.pystate')


# An encoder whose parameters have names in the released models.
RELEASED_ENCODER = dict(ENCODER, num_cross_attends=1, num_blocks=2)
LEARNED = dict(
    contents='conv1x1',
    contents_channels=4,
    positions='learned',
    position_channels=8,
    position_init_std=0.02,
    project_positions_to=8,
)


@pytest.fixture(scope='module')
def learned():
    decoder = dict(query_channels=9, cross_attend=dict(use_query_residual=False))
    return image_model(decoder=decoder, encoder=RELEASED_ENCODER, **LEARNED)


@pytest.mark.parametrize('name', ['weights.pystate', 'weights.safetensors'])
def test_foreign_files_load_with_the_arguments_of_their_model(learned, tmp_path, name):
    path = tmp_path / name
    if path.suffix == '.pystate':
        foreign_files.write_deepmind(path, *translation.to_deepmind(learned.params, learned.state))
    else:
        tensors = translation.to_huggingface(learned.params, learned.state)
        foreign_files.write_huggingface(path, tensors)
    loaded = load(path, arguments=learned.arguments, front_end=IMAGE)
    assert loaded.function == 'image_classifier'
    assert loaded.licence == ''  # these are not the released weights
    np.testing.assert_array_equal(loaded(IMAGES), learned(IMAGES))
    # Without arguments they are to fit the released model, which is larger.
    with pytest.raises(ValueError, match=rf'{name} does not fit the model. missing: encoder'):
        load(path)


@pytest.mark.parametrize('conv_kernel', ['hub', 'transformers'])
def test_the_layout_of_the_kernel_is_passed_on(tmp_path, conv_kernel):
    conv = dict(contents='conv7x7', contents_channels=3, num_bands=2, max_resolution=[2, 2])
    decoder = dict(query_channels=9)
    model = image_model(decoder=decoder, encoder=RELEASED_ENCODER, **conv)
    tensors = translation.to_huggingface(model.params, model.state, conv_kernel=conv_kernel)
    foreign_files.write_huggingface(tmp_path / 'x.safetensors', tensors)
    how = dict(arguments=model.arguments, front_end=IMAGE, conv_kernel=conv_kernel)
    np.testing.assert_array_equal(load(tmp_path / 'x.safetensors', **how)(IMAGES), model(IMAGES))


def test_positions_behind_a_convolution_are_of_a_quarter_of_the_side():
    learned = dict(positions='learned', position_channels=8, position_init_std=0.02)
    model = image_model(contents='conv7x7', contents_channels=3, **learned)
    larger = model.at_size(13)
    assert larger.params['inputs/position_encoding']['positions'].shape == (16, 8)
    assert larger(np.zeros((1, 13, 13, 3), np.float32)).shape == (1, 5)
    for size in (0, 7.5, '7'):
        with pytest.raises(ValueError, match='size is a number of pixels'):
            model.at_size(size)


def test_other_image_sizes(model, learned):
    images = np.random.default_rng(1).normal(size=(1, 12, 12, 3)).astype(np.float32)
    assert model.at_size(12)(images).shape == (1, 5)
    assert model.at_size(12).front_end['size'] == 12
    with pytest.raises(ValueError, match=r'\(36, 8\)'):
        learned(images)
    larger = learned.at_size(12)
    assert larger(images).shape == (1, 5)
    assert larger.params['inputs/position_encoding']['positions'].shape == (144, 8)
    np.testing.assert_allclose(learned.at_size(6)(IMAGES), learned(IMAGES), atol=1e-5)
    flow = dataclasses.replace(model, function='optical_flow')
    with pytest.raises(ValueError, match='optical_flow is no image classifier'):
        flow.at_size(12)


def test_the_features_of_a_classifier_are_what_its_output_layer_takes(model, learned):
    for classifier, head, width in (
        (model, 'decoder/output', 12),
        (learned, 'decoder/query_decoder/output', 9),
    ):
        features = classifier.features(IMAGES)
        assert features.shape == (2, width) and features.dtype == np.float32
        output = classifier.params[head]
        logits = np.asarray(features) @ output['w'] + output['b'][None]
        np.testing.assert_allclose(classifier(IMAGES), logits, atol=1e-5)


def test_with_other_classes_only_the_output_layer_is_new(model, learned):
    for classifier, head in (
        (model, 'decoder/output'),
        (learned, 'decoder/query_decoder/output'),
    ):
        classifier = dataclasses.replace(classifier, description='of five', licence='CC BY 4.0')
        other = classifier.with_classes(['cat', 'dog', 'owl'])
        assert other.classes == ['cat', 'dog', 'owl'] and other.arguments['num_classes'] == 3
        assert (other.description, other.licence) == ('', 'CC BY 4.0')
        assert other(IMAGES).shape == (2, 3)
        np.testing.assert_array_equal(other.features(IMAGES), classifier.features(IMAGES))
        new = {m for m in other.params if other.params[m] is not classifier.params[m]}
        assert new == {head} and classifier.arguments['num_classes'] == 5
    again = [learned.with_classes(['a', 'b'], seed).params[head]['w'] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(again[0], again[1])
    assert not np.allclose(again[0], again[2])


def test_only_classifiers_have_features_and_other_classes(model):
    other = dataclasses.replace(model, function='optical_flow')
    for ask in (lambda: other.with_classes(['a']), lambda: other.features(IMAGES)):
        with pytest.raises(ValueError, match='optical_flow is no classifier; these are: image'):
            ask()
    for names, message in (
        ('cat', "classes are a list of names, not 'cat'"),
        ([1, 2], 'classes are a list of names'),
        (3, 'classes are a list of names, not 3'),
        ([], 'at least one'),
        (['a', 'a'], 'different names'),
    ):
        with pytest.raises(ValueError, match=message):
            model.with_classes(names)


@pytest.mark.parametrize(
    'function, inputs, front_end',
    [
        ('point_classifier', dict(num_bands=1, max_resolution=[3] * 3), dict(num_points=2)),
        (
            'audio_visual_classifier',
            dict(audio=dict(samples_per_patch=2, num_bands=1, max_resolution=[3]), min_padding=1),
            dict(
                modalities=['audio'],
                num_frames=1,
                sample_rate=4,
                frames_per_second=1,
                size=2,
                log_mel=None,
            ),
        ),
    ],
)
def test_classifiers_of_points_and_sound_have_features_and_other_classes(
    function, inputs, front_end
):
    arguments = dict(num_classes=5, inputs=inputs, encoder=RELEASED_ENCODER)
    model = initialise(function, arguments, front_end)
    other = model.with_classes(['a', 'b'])
    example = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), other.example(3))
    assert other.params['decoder/output']['w'].shape == (12, 2)
    assert other.features(*example).shape == (3, 12)


def language_model():
    return initialise(
        'masked_language_model',
        dict(
            inputs=dict(vocabulary_size=11, channels=6, max_length=13),
            encoder=RELEASED_ENCODER,
            decoder=dict(cross_attend=dict(use_query_residual=False)),
        ),
        dict(length=13),
    )


WITHOUT_HAIKU = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name.split('.')[0] not in ('haiku', 'perceiver_jax'), name
sys.meta_path.insert(0, Refuse())
import numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], 'rb').read()))
inputs = np.load(sys.argv[2])
np.save(sys.argv[3], program.call(*(inputs[name] for name in inputs.files)))
"""


def test_an_exported_program_runs_without_haiku_at_any_batch_size(model, tmp_path):
    program = tmp_path / 'model.stablehlo'
    model.export(program)
    assert jax.export.deserialize(bytearray(program.read_bytes())).platforms == (
        'cpu',
        'cuda',
        'tpu',
    )
    images = np.random.default_rng(1).normal(size=(5, 6, 6, 3)).astype(np.float32)
    np.savez(tmp_path / 'inputs.npz', images=images)
    paths = [program, tmp_path / 'inputs.npz', tmp_path / 'outputs.npy']
    subprocess.run([sys.executable, '-c', WITHOUT_HAIKU, *paths], check=True, timeout=100)
    np.testing.assert_allclose(np.load(paths[-1]), model(images), atol=1e-5)


def test_a_program_of_several_inputs(tmp_path):
    model = language_model()
    model.export(tmp_path / 'model.stablehlo', platforms=['cpu'])
    program = jax.export.deserialize(bytearray((tmp_path / 'model.stablehlo').read_bytes()))
    tokens = np.random.default_rng(0).integers(11, size=(3, 13), dtype=np.int32)
    mask = np.arange(13) < np.array([[13], [5], [1]])
    np.testing.assert_allclose(program.call(tokens, mask), model(tokens, mask), atol=1e-5)


def test_examples_of_all_functions():
    shapes = {
        'point_classifier': (dict(num_points=11), [(2, 11, 3)]),
        'optical_flow': (dict(tile=[6, 8]), [(2, 2, 6, 8, 3)]),
        'masked_language_model': (dict(length=13), [(2, 13), (2, 13)]),
        'video_autoencoder': (
            dict(num_frames=3, size=8, frames_per_second=25, sample_rate=100),
            [(2, 3, 8, 8, 3), (2, 12, 1)],
        ),
    }
    for function, (front_end, expected) in shapes.items():
        example = Pretrained(function, {}, front_end, {}, {}).example(2)
        assert [x.shape for x in example] == expected
    assert Pretrained('image_classifier', {}, IMAGE, {}, {}).example()[0].dtype == jnp.float32


@pytest.mark.parametrize('function', MODELS)
def test_every_model_has_an_example_and_an_activation(function):
    assert function in pretrained._EXAMPLES
    expected = {'optical_flow': None, 'audio_visual_classifier': 'sigmoid'}
    model = Pretrained(function, {}, {}, {}, {})
    assert model.activation == expected.get(function, 'softmax')
    assert MODELS[function].__name__ == function


def test_the_activation_is_saved(model, tmp_path):
    dataclasses.replace(model, activation='sigmoid').save(tmp_path / 'model')
    assert load(tmp_path / 'model').activation == 'sigmoid'
    dataclasses.replace(model, activation=None).save(tmp_path / 'none')
    assert load(tmp_path / 'none').activation is None


def test_there_is_no_such_model_or_activation(model):
    with pytest.raises(ValueError, match="there is no model 'eval'; there are image_classifier, "):
        Pretrained('eval', {}, {}, {}, {})
    with pytest.raises(ValueError, match="'softmax', 'sigmoid' or None, not 'relu'"):
        dataclasses.replace(model, activation='relu')
