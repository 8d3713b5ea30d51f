import pytest

from configs import audioset, common, flow, imagenet, modelnet40
from experiments.training.checks import differences
from tests.toys.configs import CONFIGS

pytestmark = pytest.mark.golden

ABLATIONS = (
    'perceiver,cross_attends=2,placement=start',
    'perceiver,share=no',
    'perceiver,cross_attends=12,self_attends=0,share=no',
    'io_learned,decoder=average',
    'perceiver,permuted=yes',
    'resnet50,features=fourier,permuted=yes',
    'cifar10,model=transformer,permuted=yes',
)
FLOW_ABLATIONS = ('main,patch=1,frames=separate', 'conv,frames=separate', 'conv,size=small')
OF_ALL_TASKS = [(configs, x) for configs in CONFIGS.values() for x in configs.VARIANTS]


@pytest.mark.parametrize(
    ('configs', 'variant'),
    OF_ALL_TASKS
    + [(imagenet, x) for x in ABLATIONS]
    + [(modelnet40, x) for x in ('vit_b8,grid=32', 'small,model=vit16')]
    + [(audioset, x) for x in ('io_mel_video,decoder=average', 'esc,input=raw_audio')]
    + [(flow, x) for x in FLOW_ABLATIONS],
)
def test_configs_are_locked_and_of_plain_values(configs, variant):
    config = configs.get_config(variant)
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
    assert flow.get_config('main').paper.value == 2.42
    assert flow.get_config('conv,size=small').paper.epe.kitti2015 == 6.12
    # A combination that the paper does not list has no number.
    assert imagenet.get_config('perceiver,cross_attends=2,share=no').paper.value is None


def test_the_papers_comparison_carries_its_rows():
    values = {
        'resnet50': 0.776,
        'resnet50,features=fourier': 0.735,
        'resnet50,features=fourier,permuted=yes': 0.394,
        'vit_b16,features=fourier,permuted=yes': 0.617,
        'vit_b16,permuted=yes': None,  # the paper permutes what has Fourier features
        'transformer,permuted=yes': 0.570,
        'perceiver,permuted=yes': 0.780,
        'perceiver,permuted=yes,cross_attends=4': None,
    }
    assert {x: imagenet.get_config(x).paper.value for x in values} == values
    assert modelnet40.get_config('vit_b4').paper.value == 0.734
    assert modelnet40.get_config('vit_b4,grid=32').paper.value is None
    assert modelnet40.get_config('transformer').points.num_points == 1936


def test_the_former_name_of_the_permuted_perceiver_means_the_same():
    former, now = map(imagenet.get_config, ('perceiver_permuted', 'perceiver,permuted=yes'))
    assert former.to_dict() == now.to_dict()


def test_the_miniature_differs_in_the_permutation_alone():
    for model in ('perceiver', 'resnet', 'vit', 'transformer'):
        plain, permuted = (
            imagenet.get_config(f'cifar10,model={model},permuted={x}') for x in ('no', 'yes')
        )
        changed = differences(plain.to_dict(), permuted.to_dict())
        assert {*changed} <= {'model.inputs.permutation_seed', 'paper.value'}, model


@pytest.mark.parametrize(
    ('variant', 'learning_rate'),
    [('io_fourier', 2e-3), ('io_learned,decoder=average', 2e-3), ('io_conv', 2e-4)],
)
def test_ios_recipe_of_fine_tuning(variant, learning_rate):
    config = imagenet.get_config(f'{variant},recipe=fine_tune')
    assert config.optimizer.to_dict() == common.lamb(
        learning_rate, dict(kind='flat_cosine', flat_fraction=70_000 / 131_000)
    )
    assert (config.train.steps, config.train.epochs) == (131_000, None)
    assert config.train.batch_size == 1024
    changed = differences(imagenet.get_config(variant).to_dict(), config.to_dict())
    changed = {key for key in changed if key.split('.')[0] not in ('optimizer', 'train')}
    # A number of the paper is of its own classes.
    assert changed <= {'model.num_classes', 'paper.source', 'paper.value'}
    assert config.model.num_classes == 0


@pytest.mark.parametrize(('configs', 'variant'), OF_ALL_TASKS)
def test_every_model_of_weights_has_a_recipe_of_fine_tuning(configs, variant):
    if 'recipe' not in configs.VARIANTS[variant]:
        assert variant in ('demo', 'cifar10') or 'network' in configs.get_config(variant).model
        return
    before, config = (configs.get_config(f'{variant}{x}') for x in ('', ',recipe=fine_tune'))
    assert config.is_locked
    assert config.optimizer.learning_rate <= before.optimizer.learning_rate
    assert config.optimizer.schedule.kind == 'flat_cosine'
    assert config.train.steps and config.train.epochs is None
    assert config.train.evaluate_every_steps <= config.train.steps / 4
    assert config.paper.value is None
    assert config.model.get('num_classes', 0) == 0
    assert config.model.encoder == before.model.encoder


@pytest.mark.parametrize('variant', ['small,patch=1', 'main,size=small', 'conv,patch=1'])
def test_options_of_another_variant_are_refused(variant):
    with pytest.raises(ValueError, match='has no option'):
        flow.get_config(variant)


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
    short = modelnet40.get_config('perceiver,recipe=short')
    assert short.paper.value == 0.857
    assert short.model.encoder == modelnet40.get_config().model.encoder
    assert short.augmentation == modelnet40.get_config('small').augmentation
    assert {modelnet40.get_config(x).paper.value for x in ('small', 'demo')} == {None}


def test_what_the_variants_of_audioset_add():
    def config(variant):
        return audioset.get_config(variant)

    assert config('raw_audio').augmentation.drop_video == 0
    assert config('mel_video').augmentation.drop_video == 0.3
    assert config('io_mel_video').optimizer.schedule.kind == 'flat_cosine'
    tuned = config('mel_video_tuned').augmentation
    assert (tuned.drop_video, tuned.drop_sound) == (0.3, 0.1)
    assert tuned.spec_augment.time_masks == tuned.spec_augment.frequency_masks == 0
    assert config('mel_video').augmentation.spec_augment.time_masks > 0
    assert set(config('esc,input=raw_audio').model.inputs) == {'audio', 'min_padding'}
    ten = config('esc,classes=10,fold=2')
    table = ten.data.table
    assert (table.train, table.validation, table.only) == ('1,3,4,5', '2', 'esc10=True')
    assert ten.model.num_classes == 10
    table = config('esc').data.table
    assert (table.train, table.validation, table.only) == ('1,2,3,4', '5', '')
    with pytest.raises(ValueError, match="'mel' has no option 'decoder'"):
        config('mel,decoder=average')
    with pytest.raises(ValueError, match="input='mell' of a variant: Did you mean mel"):
        config('esc,input=mell')


@pytest.mark.parametrize('variant', ['small,model=vit2', 'small,recipe=fine_tune', 'demo'])
def test_the_small_perceiver_of_shapes_alone_has_its_recipe(variant):
    """The others were measured without it."""
    config, small = modelnet40.get_config(variant), modelnet40.get_config('small')
    assert (config.train.ema_decay, small.train.ema_decay) == (0, 0.998)
    assert config.optimizer.trust_ratio and not small.optimizer.trust_ratio
    assert (config.evaluation.num_points, small.evaluation.num_points) == (None, 1024)
    assert (config.augmentation.drop_points, small.augmentation.drop_points) == (0, 0.5)
