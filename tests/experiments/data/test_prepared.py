import json
import pickle
import shutil

import pytest
import tensorflow_datasets as tfds

from experiments.data.pipeline import BrokenExample
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
        ('features.json', b'{"x":' * 9999, '1.0.0/features.json: not JSON: '),
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


def damaged(data_folder, tmp_path, damage):
    """A copy whose only file of the split 'train' is damaged."""
    folder = tmp_path / '1.0.0'
    shutil.copytree(version_folder(data_folder, 'numbers'), folder)
    (file,) = folder.glob('*-train.array_record-*')
    file.write_bytes(damage(file.read_bytes()))
    return folder, file


@pytest.mark.parametrize(
    'damage',
    [
        lambda content: b'',
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: bytes(len(content)),
        lambda content: content + bytes(7),
    ],
)
def test_an_empty_or_cut_file_is_refused_at_opening(data_folder, tmp_path, damage):
    folder, file = damaged(data_folder, tmp_path, damage)
    with pytest.raises(Refused, match=f'^{file} .* is empty, cut or damaged: ') as error:
        TfdsRecords(folder, 'validation+train', from_tfds)
    assert '\n' not in str(error.value)


def test_files_are_those_that_dataset_info_lists(data_folder, tmp_path):
    folder, file = damaged(data_folder, tmp_path, bytes)
    info = folder / 'dataset_info.json'
    listed = info.read_text()
    info.write_text(listed.replace('"5"', '"6"'))
    with pytest.raises(Refused, match=f'{file} .* has 5 readable records, and .* lists 6'):
        TfdsRecords(folder, 'train', from_tfds)
    info.write_text(listed.replace('"5"', '"5", "4"'))
    with pytest.raises(Refused, match='train.array_record-00000-of-00002 is missing, one of 2'):
        TfdsRecords(folder, 'train', from_tfds)
    info.write_text(listed.replace('"train"', '"test"'))
    with pytest.raises(Refused, match=f"{info} lists no numbers of records of the split 'train'"):
        TfdsRecords(folder, 'train', from_tfds)
    info.write_text(listed.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(Refused, match=f'{info}: '):
        TfdsRecords(folder, 'train', from_tfds)


def test_a_wrong_byte_is_a_broken_example_with_its_place(data_folder, tmp_path):
    def flip(content):
        at = content.index(b'train 3')  # in the data, where array_record's compression keeps it
        return content[:at] + b'drain 3' + content[at + 7 :]

    folder, file = damaged(data_folder, tmp_path, flip)
    source = TfdsRecords(folder, 'validation+train', from_tfds)
    examples, broken = [], []
    for index in range(len(source)):
        try:
            examples.append(source[index]['name'])
        except BrokenExample as error:
            broken.append(f'{index}: {error}')
    assert len(examples) == 7 and 'train 3' not in examples
    (message,) = broken
    number = int(message.split(':')[0]) - COUNTS['validation'] + 1
    assert f'{file}, record {number} of 5: ' in message and len(message) < 500


EVIL = {'pythonClassName': 'evil.Feature', 'jsonFeature': {'json': '{}'}}
FEATURES = 'tensorflow_datasets.core.features.'


@pytest.mark.parametrize(
    'features',
    [
        EVIL,
        {'python_class_name': 'evil.Feature'},
        {'type': 'evil.Feature', 'content': {}},
        {'pythonClassName': f'{FEATURES}evil.Feature'},
        {
            'pythonClassName': f'{FEATURES}features_dict.FeaturesDict',
            'featuresDict': {'features': {'label': EVIL}},
        },
        {
            'pythonClassName': f'{FEATURES}features_dict.FeaturesDict',
            'jsonFeature': {'json': json.dumps({'label': {'type': 'evil.Feature', 'content': {}}})},
        },
        {
            'type': f'{FEATURES}sequence_feature.Sequence',
            'proto_cls': 'tensorflow_datasets.SequenceFeature',
            'content': json.dumps({'feature': EVIL}),
        },
    ],
)
def test_only_classes_of_tfds_are_imported(data_folder, tmp_path, monkeypatch, features):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'evil.py').write_text('raise SystemExit("imported")')
    folder = tmp_path / '1.0.0'
    shutil.copytree(version_folder(data_folder, 'numbers'), folder)
    (folder / 'features.json').write_text(json.dumps(features))
    with pytest.raises(Refused, match="features.json: '.*evil.Feature' is none of TFDS's own"):
        TfdsRecords(folder, 'train', from_tfds)


def test_what_the_metadata_lacks_is_named(data_folder, tmp_path):
    folder = tmp_path / '1.0.0'
    shutil.copytree(version_folder(data_folder, 'numbers'), folder)
    with pytest.raises(Refused, match=r"features.json: expected .* \['image'\] are missing"):
        TfdsRecords(folder, 'train', from_tfds, needs=('name', 'image'))
    with pytest.raises(Refused, match="features.json: expected names of classes for 'name'"):
        TfdsRecords(folder, 'train', from_tfds, label='name')


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
