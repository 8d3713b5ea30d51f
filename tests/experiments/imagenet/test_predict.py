"""Images, classified by a model that knows the answer."""

import cv2
import numpy as np
import pytest

from experiments.classes import Shown
from experiments.imagenet.predict import classify
from experiments.predict import as_text
from perceiver_jax.front_ends.images import prepare_image
from perceiver_jax.grids import permutation
from tests.toys.known_model import IMAGES, KnownModel, write_image

pytestmark = pytest.mark.smoke

RNG = np.random.default_rng(0)


def test_an_image_is_classified_as_evaluation_sees_it(tmp_path):
    image = write_image(tmp_path / 'a.b.png', 11, 13)
    asked = []

    def logits(images):
        np.testing.assert_array_equal(images, prepare_image(image, **IMAGES)[None])
        return np.log([[1.0, 3.0]])

    def attention(module, images, logits):
        asked.append(module)
        assert not logits
        assert images.shape == (1, 7, 7, 3)
        return RNG.random((1, 2, 3, 49))  # heads, latents, elements

    model = KnownModel(logits, IMAGES, {'inputs': {}}, attention=attention)
    modules = [f'encoder/cross_attend_{i}' for i in (1, 2)]
    model.params = {f'{x}/attention/query': {} for x in modules}
    result = classify(model, str(tmp_path / 'a.b.png'), tmp_path / 'new', ['cat', 'dog'])
    assert asked == modules
    assert result['input'] == str(tmp_path / 'a.b.png')
    assert [x['label'] for x in result['best']] == ['dog', 'cat']
    assert result['files'] == [str(tmp_path / 'new' / 'a.b_attention.png')]
    assert cv2.imread(result['files'][0]).std() > 1
    assert as_text(result).splitlines()[1:] == [
        '   75.0 %  dog',
        '   25.0 %  cat',
        f'  {tmp_path}/new/a.b_attention.png',
    ]


def test_a_grey_model_says_that_it_sees_no_colours(tmp_path):
    grey = {**IMAGES, 'mean': [0.5], 'std': [0.2]}
    model = KnownModel(lambda images: np.zeros((1, 2)), grey, {'inputs': {}})
    model.params = {'encoder/cross_attend_1/attention/query': {}}
    model.attention = lambda *_, logits: RNG.random((1, 2, 3, 49))
    image = write_image(tmp_path / 'colour.png', 11, 13)
    with pytest.warns(UserWarning, match='colour.png is in colour, and the model sees it in grey'):
        classify(model, str(tmp_path / 'colour.png'), tmp_path, ['cat', 'dog'])
    cv2.imwrite(str(tmp_path / 'grey.png'), image[..., :1].repeat(3, -1))
    classify(model, str(tmp_path / 'grey.png'), tmp_path, ['cat', 'dog'])  # without a warning


def test_tiles_are_of_the_first_head_and_in_the_images_order(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        'experiments.pictures.predictions.write_attention_tiles',
        lambda path, image, maps, title, **how: drawn.append((maps, how)),
    )
    logits = RNG.normal(size=(1, 2, 3, 49))
    inputs = {'inputs': {'permutation_seed': 5}}
    model = KnownModel(lambda images: np.zeros((1, 2)), IMAGES, inputs)
    model.params = {'encoder/cross_attend_1/attention/query': {}}
    model.attention = lambda *_, logits: {True: shuffled}[logits]
    shuffled = logits[..., permutation(5, 49)]
    write_image(tmp_path / 'a.png', 11, 13)
    classify(model, str(tmp_path / 'a.png'), tmp_path, ['cat', 'dog'], Shown(True, [2, 0]))
    ((maps, how),) = drawn
    assert list(maps) == ['Cross-attend 1, head 1 of 2']
    (first,) = maps.values()
    np.testing.assert_array_equal(first, logits[0, 0].reshape(3, 7, 7))
    assert how == {'logits': True, 'latents': [2, 0]}
