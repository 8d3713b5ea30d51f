import io
import json
import os
import pickle
import struct

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.data.pipeline import BrokenExample
from experiments.imagenet import sources
from experiments.imagenet.sources import masked_crc32c, open_source
from perceiver_jax.errors import Refused

CLASSES = ['n01440764', 'n02102040', 'n03000684']
COUNTS = {'train': 11, 'validation': 5}


def encoded(number):
    return cv2.imencode('.jpg', np.full((13, 17, 3), 9 * number, np.uint8))[1].tobytes()


class Imagenet2012(tfds.core.GeneratorBasedBuilder):
    """TFDS's imagenet2012 with eleven images."""

    VERSION = tfds.core.Version('5.1.0')

    def _info(self):
        features = {
            'image': tfds.features.Image(encoding_format='jpeg'),
            'label': tfds.features.ClassLabel(names=CLASSES),
            'file_name': tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for number in range(COUNTS[split]):
            yield (
                number,
                {
                    'image': io.BytesIO(encoded(number)),
                    'label': number % 3,
                    'file_name': f'{split}_{number}.JPEG',
                },
            )


@pytest.fixture(scope='module')
def array_records(tmp_path_factory):
    path = tmp_path_factory.mktemp('tensorflow_datasets')
    Imagenet2012(data_dir=path, file_format='array_record').download_and_prepare()
    return path


def framed(record):
    length = struct.pack('<Q', len(record))
    return length + masked_crc32c(length) + record + masked_crc32c(record)


@pytest.fixture
def tfrecords(array_records, tmp_path):
    """The same examples as TFDS writes them by default, each split in two files."""
    prepared = array_records / 'imagenet2012' / '5.1.0'
    builder = tfds.builder_from_directory(prepared)
    folder = tmp_path / 'imagenet2012' / '5.1.0'
    folder.mkdir(parents=True)
    for name in ('features.json', 'label.labels.txt'):
        (folder / name).write_bytes((prepared / name).read_bytes())
    info = json.loads((prepared / 'dataset_info.json').read_text())
    for listed in info['splits']:
        listed['shardLengths'] = ['3', str(COUNTS[listed['name']] - 3)]
    (folder / 'dataset_info.json').write_text(json.dumps(info | {'fileFormat': 'tfrecord'}))
    for split in COUNTS:
        raw = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        records = [framed(bytes(raw[index])) for index in range(len(raw))]
        for part, some in enumerate((records[:3], records[3:])):
            name = f'imagenet2012-{split}.tfrecord-{part:05}-of-00002'
            (folder / name).write_bytes(b''.join(some))
    return tmp_path


def train_files(path):
    return sorted(path.glob('imagenet2012/5.1.0/*-train.tfrecord-*-of-*'))


@pytest.fixture
def folder(tmp_path):
    """train/ with three classes, val/ with two of them; kinds of names and things to pass over."""
    files = {
        f'train/{CLASSES[0]}': ['a.JPEG', 'b.jpg', 'notes.txt'],
        f'train/{CLASSES[1]}': ['é.jpeg', 'd.PNG'],
        f'train/{CLASSES[2]}': ['e.png'],
        f'val/{CLASSES[2]}': ['g.JPEG'],
        f'val/{CLASSES[0]}': ['f.JPEG'],
    }
    for parent, names in files.items():
        (tmp_path / parent).mkdir(parents=True)
        for number, name in enumerate(names):
            (tmp_path / parent / name).write_bytes(encoded(number))
    (tmp_path / 'train' / 'readme.txt').write_text('no class')
    return tmp_path


def assert_holds_imagenet2012(source, split):
    assert len(source) == COUNTS[split] and source.classes == CLASSES
    examples = {example['name']: example for example in map(source.__getitem__, range(len(source)))}
    assert len(examples) == COUNTS[split]
    for number in range(COUNTS[split]):
        name = f'{split}_{number}.JPEG'
        expected = {'encoded': encoded(number), 'label': number % 3, 'name': name}
        assert examples[name] == expected


@pytest.mark.parametrize('split', COUNTS)
@pytest.mark.parametrize('below', ['', 'imagenet2012/5.1.0'])
def test_array_records(array_records, split, below):
    source = open_source('tfds', str(array_records / below), split)
    assert_holds_imagenet2012(source, split)
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


@pytest.mark.parametrize('split', COUNTS)
def test_tfrecords(tfrecords, split):
    source = open_source('tfrecord', str(tfrecords), split)
    assert_holds_imagenet2012(source, split)
    assert pickle.loads(pickle.dumps(source))[1] == source[1]


def test_damaged_names_of_classes_are_refused(tfrecords):
    file = tfrecords / 'imagenet2012' / '5.1.0' / 'label.labels.txt'
    file.write_text(file.read_text(), 'utf-16')
    with pytest.raises(Refused, match='label.labels.txt, line 1: expected UTF-8 without'):
        open_source('tfrecord', str(tfrecords), 'train')


def test_array_records_are_not_tfrecords(tfrecords):
    with pytest.raises(Refused, match="has no array_record files: .* with source='tfrecord'"):
        open_source('tfds', str(tfrecords), 'train')


def test_hidden_files_are_no_records(tfrecords):
    for file in [*tfrecords.rglob('*.tfrecord-*')]:
        file.with_name(f'._{file.name}').write_bytes(b'of the Finder')
    assert_holds_imagenet2012(open_source('tfrecord', str(tfrecords), 'train'), 'train')


def test_tfrecord_index_is_kept_until_the_files_change(tfrecords, monkeypatch):
    open_source('tfrecord', str(tfrecords), 'train')
    scans = []
    scan = sources._records
    monkeypatch.setattr(
        sources, '_records', lambda file, *args: scans.append(file) or scan(file, *args)
    )
    assert_holds_imagenet2012(open_source('tfrecord', str(tfrecords), 'train'), 'train')
    assert scans == []
    *_, last = train_files(tfrecords)
    last.write_bytes(last.read_bytes() + framed(b''))
    info = last.with_name('dataset_info.json')
    info.write_text(info.read_text().replace('"8"', '"9"'))
    assert len(open_source('tfrecord', str(tfrecords), 'train')) == COUNTS['train'] + 1
    assert len(scans) == 2


def wrong_index(sizes, **wrong):
    """A file of an index that NumPy can read."""
    file = io.BytesIO()
    np.savez(file, **{'sizes': sizes, 'records': np.zeros((COUNTS['train'], 3), np.int64)} | wrong)
    return file.getvalue()


@pytest.mark.parametrize(
    'damage',
    [
        lambda content, sizes: b'',
        lambda content, sizes: content[:-1],
        lambda content, sizes: content.replace(b'records.npy', b'redords.npy'),
        lambda content, sizes: content.replace(b'(11, 3)', b'(10, 3)'),
        lambda content, sizes: content.replace(
            b"'<i8', 'fortran_order': False, 'shape': (11", b'('
        ),
        lambda content, sizes: content.replace(bytes([12, 0, 0, 0]), bytes([13, 0, 0, 0])),
        lambda content, sizes: wrong_index(sizes),
        lambda content, sizes: wrong_index(sizes, records=np.zeros((11, 3))),
        lambda content, sizes: wrong_index(sizes, records=np.zeros(11, np.int64)),
        lambda content, sizes: wrong_index(sizes, records=np.array([None])),
    ],
)
def test_damaged_tfrecord_index_is_made_anew(tfrecords, caplog, damage):
    open_source('tfrecord', str(tfrecords), 'train')
    (index,) = tfrecords.rglob('*_index.npz')
    good, sizes = index.read_bytes(), [file.stat().st_size for file in train_files(tfrecords)]
    index.write_bytes(damage(good, sizes))
    assert_holds_imagenet2012(open_source('tfrecord', str(tfrecords), 'train'), 'train')
    assert caplog.text.count(f'{index} is damaged, and made anew') == 1
    np.testing.assert_array_equal(np.load(index)['records'], np.load(io.BytesIO(good))['records'])


def test_tfrecord_index_lives_in_memory_where_it_cannot_be_kept(tfrecords, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise PermissionError('read-only file system')

    monkeypatch.setattr(sources.np, 'savez', refuse)
    assert_holds_imagenet2012(open_source('tfrecord', str(tfrecords), 'train'), 'train')
    assert 'read-only file system' in caplog.text


@pytest.mark.parametrize(
    'damage, message',
    [
        (None, ' is missing, one of 2 that dataset_info.json lists'),
        (lambda content: b'', r' \(0 bytes\) has 0 readable records, and .* lists 3'),
        (lambda content: content[:-7], ' ends within its record at byte '),
        (lambda content: content[:5], ' ends within its record at byte 0'),
        (lambda content: content + framed(b''), ' has more than the 3 records that '),
        (lambda content: bytes(len(content)), ': the checksum of the length of .* at byte 0 is'),
        (lambda content: b'\1' + content[1:], ': the checksum of the length of .* at byte 0 is'),
        (lambda content: content[:8] + b'\1' + content[9:], ': the checksum of .* at byte 0 is'),
    ],
)
def test_damaged_tfrecord_file_is_named(tfrecords, damage, message):
    first, _ = train_files(tfrecords)
    if damage:
        first.write_bytes(damage(first.read_bytes()))
    else:
        first.unlink()
    with pytest.raises(Refused, match=f'{first.name}{message}'):
        open_source('tfrecord', str(tfrecords), 'train')


def test_tfrecord_file_cut_between_records_is_counted(tfrecords):
    _, last = train_files(tfrecords)
    content = last.read_bytes()
    (length,) = struct.unpack('<Q', content[:8])
    last.write_bytes(content[: 16 + length])
    with pytest.raises(Refused, match=f'{last.name} .* has 1 readable records, .* lists 8'):
        open_source('tfrecord', str(tfrecords), 'train')


@pytest.mark.parametrize('place', [12, 40, 300, -4, -1])  # the last two of the checksum itself
def test_any_wrong_byte_of_a_tfrecord_is_a_broken_example(tfrecords, place):
    first, _ = train_files(tfrecords)
    content = bytearray(first.read_bytes())
    (length,) = struct.unpack('<Q', content[:8])
    content[place if place > 0 else 16 + length + place] ^= 4
    first.write_bytes(content)
    source = open_source('tfrecord', str(tfrecords), 'train')
    with pytest.raises(BrokenExample, match=f'{first.name}, record at byte 12: its checksum'):
        source[0]
    assert source[1]['name'].startswith('train_')


def test_a_tfrecord_that_is_no_example_is_a_broken_example(tfrecords):
    first, _ = train_files(tfrecords)
    content = first.read_bytes()
    (length,) = struct.unpack('<Q', content[:8])
    first.write_bytes(framed(b'\xff' * length) + content[16 + length :])
    with pytest.raises(BrokenExample, match=f'{first.name}, record at byte 12: '):
        open_source('tfrecord', str(tfrecords), 'train')[0]


def test_tfrecords_read_as_array_records_say_what_to_do(tfrecords):
    with pytest.raises(ValueError, match="source='tfrecord'"):
        open_source('tfds', str(tfrecords), 'train')


def test_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv('HOME', str(folder.parent))
    assert len(open_source('folder', f'~/{folder.name}', 'train')) == 5


def test_folder(folder):
    (folder / 'train' / '.ipynb_checkpoints').mkdir()
    (folder / 'train' / '__MACOSX').mkdir()
    for name in ('._a.JPEG', '.DS_Store', '.a.png', 'Thumbs.db'):
        (folder / 'train' / CLASSES[0] / name).write_bytes(b'left by another program')
    source = open_source('folder', str(folder), 'train')
    names = [os.path.relpath(source[index]['name'], folder) for index in range(len(source))]
    assert names == [
        f'train/{CLASSES[0]}/a.JPEG',
        f'train/{CLASSES[0]}/b.jpg',
        f'train/{CLASSES[1]}/d.PNG',
        f'train/{CLASSES[1]}/é.jpeg',
        f'train/{CLASSES[2]}/e.png',
    ]
    assert [source[index]['label'] for index in range(5)] == [0, 0, 1, 1, 2]
    assert source[1]['encoded'] == encoded(1)
    assert source.classes == CLASSES  # hidden folders, as notebooks leave them, are no classes
    assert pickle.loads(pickle.dumps(source))[3] == source[3]


def test_validation_folder_has_the_labels_of_train(folder):
    source = open_source('folder', str(folder), 'validation')
    assert [source[index]['label'] for index in range(len(source))] == [0, 2]
    assert source.classes == CLASSES


def test_class_that_train_lacks_is_named(folder):
    (folder / 'val' / 'n09999999').mkdir()
    with pytest.raises(ValueError, match='n09999999'):
        open_source('folder', str(folder), 'validation')


def test_evaluation_needs_no_train(folder):
    (folder / 'train').rename(folder / 'elsewhere')
    source = open_source('folder', str(folder), 'validation')
    assert source.classes == [CLASSES[0], CLASSES[2]]
    assert [source[index]['label'] for index in range(2)] == [0, 1]
    names = [*reversed(CLASSES), 'n04000000']  # the labels number them in this order
    source = open_source('folder', str(folder), 'validation', names)
    assert source.classes == names
    examples = [source[index] for index in range(2)]
    assert [x['label'] for x in examples] == [0, 2]
    assert [CLASSES[2] in x['name'] for x in examples] == [True, False]
    with pytest.raises(Refused, match='train is missing: expected train/<class>/ and val/<class>/'):
        open_source('folder', str(folder), 'train', names)


def test_vanished_image_is_a_broken_example(folder):
    source = open_source('folder', str(folder), 'train')
    (folder / 'train' / CLASSES[0] / 'b.jpg').unlink()
    with pytest.raises(BrokenExample, match='b.jpg: No such file'):
        source[1]


def test_folder_without_images(tmp_path):
    (tmp_path / 'train' / CLASSES[0]).mkdir(parents=True)
    with pytest.raises(ValueError, match='train has no files <class>/'):
        open_source('folder', str(tmp_path), 'train')
    with pytest.raises(ValueError, match='val is missing'):
        open_source('folder', str(tmp_path), 'validation')


@pytest.mark.parametrize('kind', ['tfds', 'tfrecord', 'folder'])
def test_missing_path_is_named(kind, tmp_path):
    for path in (str(tmp_path / 'nowhere'), None):
        with pytest.raises(ValueError, match=f'{kind}.* at {path!r}'):
            open_source(kind, path, 'train')


@pytest.mark.parametrize('kind', ['tfds', 'tfrecord'])
def test_path_without_imagenet2012(kind, tmp_path):
    with pytest.raises(ValueError, match='no prepared imagenet2012'):
        open_source(kind, str(tmp_path), 'train')


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'test'"):
        open_source('digits', None, 'test')
    with pytest.raises(ValueError, match="'lmdb'"):
        open_source('lmdb', str(tmp_path), 'train')
