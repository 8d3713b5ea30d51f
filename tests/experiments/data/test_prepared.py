import json
import pickle
import shutil

import pytest
import tensorflow_datasets as tfds

from experiments.data.prepared import TfdsRecords, version_folder
from perceiver_jax.errors import Refused

COUNTS = {'train': 5, 'validation': 3}
CLASSES = ['even', 'odd']


class Numbers(tfds.core.GeneratorBasedBuilder):
    """Numbers with one label, and with several."""

    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        labels = tfds.features.ClassLabel(names=CLASSES)
        digits = tfds.features.ClassLabel(names=['zero', 'one', 'two', 'three', 'four'])
        features = {'name': tfds.features.Text(), 'label': labels}
        features['digits'] = tfds.features.Sequence(digits)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for number in range(COUNTS[split]):
            name = f'{split} {number}'
            yield number, {'name': name, 'label': number % 2, 'digits': [number, 0]}


@pytest.fixture(scope='module')
def data_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('tensorflow_datasets')
    Numbers(data_dir=path, file_format='array_record').download_and_prepare()
    return path


def from_tfds(example):
    return {'name': example['name'].decode(), 'label': int(example['label'])}


def test_records_are_converted_and_pickle(data_folder):
    folder = version_folder(data_folder, 'numbers')
    source = TfdsRecords(folder, 'train', from_tfds)
    examples = [source[i] for i in range(len(source))]
    expected = [{'name': f'train {n}', 'label': n % 2} for n in range(5)]
    assert sorted(examples, key=lambda example: example['name']) == expected
    assert source.classes == CLASSES
    assert str(source) == f'{folder}, split train'
    assert pickle.loads(pickle.dumps(source))[3] == source[3]


def test_splits_are_joined(data_folder):
    folder = version_folder(data_folder, 'numbers')
    both = TfdsRecords(folder, 'train+validation', from_tfds)
    assert len(both) == 8
    assert {both[i]['name'].split()[0] for i in range(8)} == {'train', 'validation'}
    with pytest.raises(Refused, match="1.0.0 has no array_record files of the split 'test'"):
        TfdsRecords(folder, 'train+test', from_tfds)


def test_classes_of_a_sequence_of_labels(data_folder):
    folder = version_folder(data_folder, 'numbers')
    source = TfdsRecords(folder, 'train', from_tfds, label='digits')
    assert source.classes == ['zero', 'one', 'two', 'three', 'four']


@pytest.mark.parametrize(
    'name, content, message',
    [
        ('label.labels.txt', 'even\nödd\n'.encode('latin-1'), 'txt, line 2: expected UTF-8'),
        ('label.labels.txt', b'even\nodd\0\n', 'txt, line 2: expected text, got a NUL'),
        ('label.labels.txt', '\ufeffeven\nodd\n'.encode(), 'txt, line 1: .* without a byte order'),
        ('label.labels.txt', b'odd\nodd\n', "txt: 'odd' is there twice"),
        ('features.json', b'{', '1.0.0/features.json: not JSON: '),
        ('features.json', b'{}', 'features.json, dataset_info.json.: expected what TFDS writes'),
        ('dataset_info.json', 10**6 * b'\xff', 'dataset_info.json: not JSON: .{,99}$'),
        ('dataset_info.json', b'{"splits": 3}', 'dataset_info.json.: expected what TFDS writes'),
    ],
)
def test_a_damaged_file_about_the_data_is_refused(data_folder, tmp_path, name, content, message):
    folder = tmp_path / '1.0.0'
    shutil.copytree(version_folder(data_folder, 'numbers'), folder)
    (folder / name).write_bytes(content)
    with pytest.raises(Refused, match=message):
        TfdsRecords(folder, 'train', from_tfds)


def test_what_the_metadata_lacks_is_named(data_folder, tmp_path):
    folder = tmp_path / '1.0.0'
    shutil.copytree(version_folder(data_folder, 'numbers'), folder)
    with pytest.raises(Refused, match=r"features.json: expected .* \['image'\] are missing"):
        TfdsRecords(folder, 'train', from_tfds, needs=('name', 'image'))
    with pytest.raises(Refused, match="features.json: expected names of classes for 'name'"):
        TfdsRecords(folder, 'train', from_tfds, label='name')
    path = folder / 'dataset_info.json'
    info = json.loads(path.read_text())
    for split in info['splits']:
        split['shardLengths'] = ['1', *split['shardLengths']]
    path.write_text(json.dumps(info))
    with pytest.raises(Refused, match='dataset_info.json: expected 2 files .* 2 are not there: '):
        TfdsRecords(folder, 'train', from_tfds)
    path.write_text(json.dumps({**info, 'splits': []}))
    with pytest.raises(Refused, match="dataset_info.json: expected the files of the split 'train'"):
        TfdsRecords(folder, 'train', from_tfds)


def test_newest_version_is_read(tmp_path):
    for version in ('5.9.0', '5.10.0', '5.11.0.incomplete'):
        (tmp_path / 'imagenet2012' / version).mkdir(parents=True)
        (tmp_path / 'imagenet2012' / version / 'features.json').write_text('{}')
    newest = tmp_path / 'imagenet2012' / '5.10.0'
    assert version_folder(tmp_path, 'imagenet2012') == newest
    assert version_folder(newest, 'imagenet2012') == newest
    with pytest.raises(ValueError, match='5.10.0 has no array_record files'):
        TfdsRecords(newest, 'train', dict)


def test_a_folder_without_prepared_data_is_refused(tmp_path):
    (tmp_path / 'numbers' / '1.0.0').mkdir(parents=True)
    with pytest.raises(Refused, match=f'^{tmp_path} holds no prepared numbers: expected features'):
        version_folder(tmp_path, 'numbers')
