import importlib

import pytest

from configs import imagenet, modelnet40

ABLATIONS = (
    'perceiver,cross_attends=2,placement=start',
    'perceiver,share=no',
    'perceiver,cross_attends=12,self_attends=0,share=no',
    'io_learned,decoder=average',
)


VARIANTS = {'imagenet': (*imagenet.VARIANTS, *ABLATIONS), 'modelnet40': modelnet40.VARIANTS}


@pytest.mark.parametrize(
    'task, variant', [(task, variant) for task in VARIANTS for variant in VARIANTS[task]]
)
def test_configs_are_locked_and_of_plain_values(task, variant):
    config = importlib.import_module(f'configs.{task}').get_config(variant)
    assert config.task == task
    assert config.is_locked
    assert config.to_json()


def test_ablations_carry_their_rows_of_the_paper():
    assert imagenet.get_config('perceiver,cross_attends=2,placement=start').paper.value == 0.767
    assert imagenet.get_config('perceiver,share=no').paper.value == 0.729
    assert (
        imagenet.get_config('perceiver,cross_attends=4,self_attends=0,share=no').paper.value
        == 0.394
    )
    assert imagenet.get_config('io_conv,decoder=average').paper.value == 0.774
    # A combination that the paper does not list has no number.
    assert imagenet.get_config('perceiver,cross_attends=2,share=no').paper.value is None


@pytest.mark.parametrize(
    'variant, message',
    [
        ('io_fourer', "'io_fourer'. Did you mean io_fourier"),
        ('perceiver,cross_atends=4', "'cross_atends'.* Did you mean cross_attends"),
        ('perceiver,cross_attends=3', "cross_attends='3'"),
        ('perceiver_learned,cross_attends=4', "'perceiver_learned' has no option 'cross_attends'"),
        ('io_fourier,share=no', "'io_fourier' has no option 'share'"),
    ],
)
def test_a_misspelt_variant_is_named(variant, message):
    with pytest.raises(ValueError, match=message):
        imagenet.get_config(variant)


def test_only_the_papers_model_of_clouds_carries_its_number():
    assert modelnet40.get_config().paper.value == 0.857
    assert {modelnet40.get_config(x).paper.value for x in ('small', 'demo')} == {None}
