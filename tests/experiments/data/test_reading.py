import ml_collections
import numpy as np
import pytest

from experiments.data import reading
from perceiver_jax.errors import Refused


class Numbers:
    """Examples that are their own index."""

    classes = ('even', 'odd')

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return {'number': index}


def config(num_classes=2):
    return ml_collections.ConfigDict(
        dict(
            seed=3,
            data=dict(source='numbers', num_workers=0, on_broken='stop'),
            train=dict(batch_size=4),
            evaluation=dict(batch_size=3),
            model=dict(num_classes=num_classes),
        )
    )


def test_a_file_names_the_classes_of_a_folder(tmp_path):
    settings = config()
    settings.data.update(source='folder', classes='')
    assert reading.given_classes(settings) is None
    file = tmp_path / 'wnids.txt'
    settings.data.classes = str(file)
    with pytest.raises(Refused, match="config.data.classes is '.*wnids.txt': No such file"):
        reading.given_classes(settings)
    file.write_text('n02\nn01\n')
    assert reading.given_classes(settings) == ['n02', 'n01']
    file.write_bytes(b'n02\n\xff')
    with pytest.raises(Refused, match='config.data.classes: .*wnids.txt, line 2: expected UTF-8'):
        reading.given_classes(settings)
    settings.data.source = 'tfds'
    with pytest.raises(Refused, match="config.data.classes is .* source 'folder', and 'tfds' data"):
        reading.given_classes(settings)


def array_of(example, rng=None):
    return {'number': np.int32(example['number'])}


def taken(batches, count):
    some = [next(batches)['number'].tolist() for _ in range(count)]
    batches.close()
    return some


def test_training_starts_at_any_step_with_batches_of_the_configs_size():
    whole = taken(reading.train_batches(config(), Numbers(), array_of, 0), 4)
    assert taken(reading.train_batches(config(), Numbers(), array_of, 2), 2) == whole[2:]
    assert [len(batch) for batch in whole] == [4] * 4
    assert sorted(sum(whole, [])[:7]) == list(range(7))  # an epoch
    (half,) = taken(reading.train_batches(config(), Numbers(), array_of, 0, batch_size=2), 1)
    assert half == whole[0][:2]


def test_several_examples_make_an_item():
    batches = reading.train_batches(config(), Numbers(), array_of, 0, examples_per_item=2)
    assert next(batches)['number'].shape == (4, 2)
    batches.close()


def test_evaluation_passes_over_each_example_once():
    batches = list(reading.eval_batches(config(), Numbers(), array_of))
    numbers = np.concatenate([batch['number'][batch['mask']] for batch in batches])
    assert numbers.tolist() == list(range(7))
    assert [len(batch['mask']) for batch in batches] == [3] * 3


def test_as_many_logits_as_classes():
    reading.check_classes(config(), Numbers.classes)
    message = 'the numbers data has 2 classes, and config.model.num_classes is'
    for number in (1, 3):
        with pytest.raises(Refused, match=f'{message} {number}; 0 takes the number from the data'):
            reading.check_classes(config(num_classes=number), Numbers.classes)


def absent():
    raise Refused('there is no such folder')


def test_the_data_tells_the_number_of_classes():
    counted = config(num_classes=0)
    reading.count_classes(counted, Numbers)
    assert counted.model.num_classes == 2
    reading.count_classes(counted, absent)  # known: the data is left alone
    with pytest.raises(Refused, match='num_classes is 0, as many as .*: there is no such folder'):
        reading.count_classes(config(num_classes=0), absent)
    with pytest.raises(Refused, match='num_classes is -1, it must be at least 1, or 0 for'):
        reading.count_classes(config(num_classes=-1), Numbers)
    unlabelled = type('Unlabelled', (Numbers,), {'classes': ()})
    with pytest.raises(Refused, match='the numbers data has no classes'):
        reading.count_classes(config(num_classes=0), unlabelled)


def test_classes_are_named_where_the_data_is_at_hand():
    def bug():
        raise ValueError('of ours')

    assert reading.class_names(Numbers) == ['even', 'odd']
    assert reading.class_names(absent) is None
    with pytest.raises(ValueError, match='of ours'):
        reading.class_names(bug)
