"""Pairs of frames from archives laid out as the official ones, in small."""

import pickle
import shutil
import struct

import cv2
import numpy as np
import pytest

from experiments.data.pipeline import BrokenExample
from experiments.flow import files, sources
from experiments.flow.sources import Several, open_source, write_submission
from tests.toys.damaged_tables import check_reader

HEIGHT, WIDTH = 5, 7
RNG = np.random.default_rng(0)
FLOW = RNG.uniform(-9, 9, (HEIGHT, WIDTH, 2)).astype(np.float32)
VALID = RNG.random((HEIGHT, WIDTH)) < 0.6
FIRST, SECOND, THIRD = RNG.integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
SCENES = dict(
    num_pairs=13,
    num_evaluation_pairs=3,
    frame_size=(HEIGHT, WIDTH),
    num_shapes=(1, 2),
    motion=2.0,
    turn=1.0,
    zoom=0.01,
    perspective=0.01,
    bend=0.5,
    blur=0.5,
    fog=0.5,
    noise=0.01,
)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image)


def save_pfm(path, flow):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.dstack([flow, np.zeros(flow.shape[:2])])[::-1].astype('<f4')
    path.write_bytes(f'PF\n{flow.shape[1]} {flow.shape[0]}\n-1\n'.encode() + rows.tobytes())


def make_autoflow(root):
    for part in ('static_40k_png_1_of_4', 'static_40k_png_2_of_4'):
        table = root / 'autoflow' / part / 'table_0_batch_0' / '000001'
        save(table / 'im0.png', FIRST)
        save(table / 'im1.png', SECOND)
        files.write_flo(table / 'forward.flo', FLOW)


def make_sintel(root):
    part = root / 'sintel' / 'training'
    for i, frame in enumerate((FIRST, SECOND, THIRD), 1):
        save(part / 'clean' / 'alley_1' / f'frame_{i:04d}.png', frame)
        save(part / 'final' / 'alley_1' / f'frame_{i:04d}.png', frame // 2)
        save(root / 'sintel' / 'test' / 'final' / 'cave_3' / f'frame_{i:04d}.png', frame)
        if i < 3:
            files.write_flo(part / 'flow' / 'alley_1' / f'frame_{i:04d}.flo', i * FLOW)
    save(part / 'occlusions' / 'alley_1' / 'frame_0001.png', np.where(VALID, 0, 255))
    save(part / 'invalid' / 'alley_1' / 'frame_0002.png', np.where(VALID, 0, 255))


def make_kitti(root, kind='kitti2015', images='image_2', channels=3):
    part = root / kind / 'training'
    for i, frame in enumerate((FIRST, SECOND)):
        frame = frame if channels == 3 else frame[..., 0]
        save(part / images / f'000003_1{i}.png', frame)
        save(root / kind / 'testing' / images / f'000000_1{i}.png', frame)
    files.write_kitti_flow(part / 'flow_occ' / '000003_10.png', FLOW, VALID)
    shown = VALID & (FLOW[..., 0] > 0)
    files.write_kitti_flow(part / 'flow_noc' / '000003_10.png', FLOW, shown)


def make_flyingchairs(root):
    folder = root / 'flyingchairs' / 'FlyingChairs_release' / 'data'
    for i in (1, 2, 3):
        save(folder / f'0000{i}_img1.ppm', FIRST)
        save(folder / f'0000{i}_img2.ppm', SECOND)
        files.write_flo(folder / f'0000{i}_flow.flo', i * FLOW)


def make_flyingthings(root):
    folder = root / 'flyingthings3d'
    for i, frame in zip((6, 7), (FIRST, SECOND), strict=True):
        save(folder / 'frames_cleanpass' / 'TRAIN' / 'A' / '0000' / 'left' / f'{i:04d}.png', frame)
        for into, sign in (('Future', 1), ('Past', -1)):
            flows = folder / 'optical_flow' / 'TRAIN' / 'A' / '0000' / f'into_{into.lower()}'
            save_pfm(flows / 'left' / f'OpticalFlowInto{into}_{i:04d}_L.pfm', sign * i * FLOW)


def make_middlebury(root):
    for i, frame in ((10, FIRST), (11, SECOND)):
        save(root / 'middlebury' / 'other-data' / 'RubberWhale' / f'frame{i}.png', frame)
    folder = root / 'middlebury' / 'other-gt-flow' / 'RubberWhale'
    folder.mkdir(parents=True)
    files.write_flo(folder / 'flow10.flo', FLOW, VALID)


def check(example, frames, flow, valid=None):
    np.testing.assert_array_equal(example['frames'], np.stack(frames))
    valid = np.ones((HEIGHT, WIDTH), bool) if valid is None else valid
    np.testing.assert_array_equal(example['valid'], valid)
    np.testing.assert_allclose(example['flow'], flow * valid[..., None], rtol=0, atol=1 / 128)
    assert example['frames'].dtype == np.uint8
    assert example['flow'].dtype == np.float32


def test_autoflow_is_every_part_once(tmp_path):
    make_autoflow(tmp_path)
    source = open_source('autoflow', tmp_path, 'train')
    assert len(source) == 2
    check(source[1], (FIRST, SECOND), FLOW)
    assert source[1]['name'] == 'static_40k_png_2_of_4/table_0_batch_0/000001'
    assert not source[1]['matched'].any() and not source[1]['unmatched'].any()
    assert len(pickle.loads(pickle.dumps(source))) == 2


def test_sintel_evaluates_all_pixels_and_trains_on_the_valid_ones(tmp_path):
    make_sintel(tmp_path)
    source = open_source('sintel_clean', tmp_path, 'evaluation')
    assert [source[i]['name'] for i in range(2)] == ['alley_1/frame_0001', 'alley_1/frame_0002']
    check(source[0], (FIRST, SECOND), FLOW)
    np.testing.assert_array_equal(source[0]['matched'], VALID)
    np.testing.assert_array_equal(source[0]['unmatched'], ~VALID)
    check(source[1], (SECOND, THIRD), 2 * FLOW)
    assert not source[1]['matched'].any()  # nothing is known of its occlusions
    final = open_source('sintel_final', tmp_path, 'train')
    check(final[1], (SECOND // 2, THIRD // 2), 2 * FLOW, VALID)


def test_sintels_test_pairs_have_no_flow(tmp_path):
    make_sintel(tmp_path)
    source = open_source('sintel_final', tmp_path, 'test')
    assert len(source) == 2
    check(source[1], (SECOND, THIRD), FLOW, np.zeros((HEIGHT, WIDTH), bool))
    file = write_submission(tmp_path / 'sent', 'sintel_final', source[1]['name'], FLOW)
    assert file == tmp_path / 'sent' / 'final' / 'cave_3' / 'frame_0002.flo'
    np.testing.assert_array_equal(files.read_flow(file)[0], FLOW)


@pytest.mark.parametrize(
    'kind, images, channels, sent',
    [
        ('kitti2015', 'image_2', 3, 'flow/000000_10.png'),
        ('kitti2012', 'colored_0', 3, '000000_10.png'),
        ('kitti2012', 'image_0', 1, '000000_10.png'),
    ],
)
def test_kitti_knows_what_the_second_frame_shows(tmp_path, kind, images, channels, sent):
    make_kitti(tmp_path, kind, images, channels)
    source = open_source(kind, tmp_path, 'evaluation')
    frames = FIRST, SECOND
    if channels == 1:
        frames = [np.repeat(x[..., :1], 3, -1) for x in frames]
    assert len(source) == 1
    check(source[0], frames, FLOW, VALID)
    np.testing.assert_array_equal(source[0]['matched'], VALID & (FLOW[..., 0] > 0))
    np.testing.assert_array_equal(source[0]['unmatched'], VALID & (FLOW[..., 0] <= 0))
    tested = open_source(kind, tmp_path, 'test')
    assert [tested[i]['name'] for i in range(len(tested))] == ['000000_10']
    file = write_submission(tmp_path / 'sent', kind, '000000_10', 1000 * FLOW)
    assert file.relative_to(tmp_path / 'sent').as_posix() == sent
    flow, valid = files.read_flow(file)
    np.testing.assert_allclose(flow, np.clip(1000 * FLOW, -512, 511.984375), atol=1 / 128)
    assert valid.all()


def test_flyingchairs_split_by_their_list(tmp_path):
    make_flyingchairs(tmp_path)
    assert len(open_source('flyingchairs', tmp_path, 'evaluation')) == 3
    table = tmp_path / 'flyingchairs' / 'FlyingChairs_train_val.txt'
    table.write_text('1\n2\n1\n')
    source = open_source('flyingchairs', tmp_path, 'train')
    check(source[1], (FIRST, SECOND), 3 * FLOW)
    check(open_source('flyingchairs', tmp_path, 'evaluation')[0], (FIRST, SECOND), 2 * FLOW)
    table.write_text('1\n2\n')
    with pytest.raises(ValueError, match='train_val.txt: expected .* each of 3 pairs, got 2'):
        open_source('flyingchairs', tmp_path, 'train')
    table.write_text('1\r\n2\r\n1\r\n', 'utf-16')
    assert len(open_source('flyingchairs', tmp_path, 'train')) == 2
    table.write_text('1\n2 3\n')
    with pytest.raises(ValueError, match="train_val.txt, line 2: expected 1 .* got '3'"):
        open_source('flyingchairs', tmp_path, 'train')
    table.write_text('1\n2\n1\n')
    check_reader(lambda: sources._flyingchairs(table.parent, 'train'), table)


def test_flyingthings_go_into_future_and_past(tmp_path):
    make_flyingthings(tmp_path)
    source = open_source('flyingthings_clean', tmp_path, 'train')
    assert len(source) == 2  # of the first frame into the future, of the last one into the past
    check(source[0], (FIRST, SECOND), 6 * FLOW)
    check(source[1], (SECOND, FIRST), -7 * FLOW)
    assert source[0]['name'] == 'TRAIN/A/0000/into_future/left/OpticalFlowIntoFuture_0006_L'
    with pytest.raises(ValueError, match='has no pairs .* flyingthings_clean, evaluation'):
        open_source('flyingthings_clean', tmp_path, 'evaluation')


def test_middlebury(tmp_path):
    make_middlebury(tmp_path)
    source = open_source('middlebury', tmp_path, 'evaluation')
    check(source[0], (FIRST, SECOND), FLOW, VALID)
    assert source[0]['name'] == 'RubberWhale'


def save_sequence(root, numbers):
    """Frames of Sintel whose colour is their number; flow k is k pixels long."""
    part = root / 'sintel' / 'training'
    for i in numbers:
        save(part / 'clean' / 'alley_1' / f'frame_{i:04d}.png', np.full_like(FIRST, i))
    for i in range(1, 9):
        (part / 'flow' / 'alley_1').mkdir(parents=True, exist_ok=True)
        files.write_flo(part / 'flow' / 'alley_1' / f'frame_{i:04d}.flo', np.full_like(FLOW, i))


@pytest.mark.parametrize(
    'numbers, first, told',
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8], None),
        ([1, 2, 4, 5, 6, 7, 8, 9], [1, 4, 5, 6, 7, 8], 'lacks alley_1/frame_0003: pairs'),
        ([2, 3, 4, 5, 6, 7, 8, 9], [2, 3, 4, 5, 6, 7, 8], 'lacks alley_1/frame_0001: pairs'),
        ([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7], 'lacks alley_1/frame_0009: pairs'),
        ([1, 2, 8, 9], [1, 8], 'frame_0005, alley_1/frame_0006, alley_1/frame_0007: pairs'),
        ([1, 2], [1], 'alley_1/frame_0007 and 2 more: pairs'),
    ],
)
def test_a_missing_frame_makes_no_pair_and_is_told(tmp_path, caplog, numbers, first, told):
    save_sequence(tmp_path, numbers)
    for split in ('train', 'evaluation'):
        caplog.clear()
        source = open_source('sintel_clean', tmp_path, split)
        pairs = [source[i] for i in range(len(source))]
        assert [x['name'] for x in pairs] == [f'alley_1/frame_{i:04d}' for i in first]
        for number, pair in zip(first, pairs, strict=True):
            assert (pair['frames'][0] == number).all() and (pair['frames'][1] == number + 1).all()
            assert (pair['flow'] == number).all()
        assert len(caplog.messages) == (told is not None)
        assert told is None or told in caplog.text


def test_a_missing_frame_of_the_test_part_makes_no_pair_either(tmp_path, caplog):
    make_sintel(tmp_path)
    folder = tmp_path / 'sintel' / 'test' / 'final' / 'cave_3'
    (folder / 'frame_0003.png').rename(folder / 'frame_0010.png')
    source = open_source('sintel_final', tmp_path, 'test')
    assert [source[i]['name'] for i in range(len(source))] == ['cave_3/frame_0001']
    assert 'sintel/test/final lacks cave_3/frame_0003: pairs that need them' in caplog.text


def test_flyingchairs_are_split_by_their_numbers(tmp_path, caplog):
    make_flyingchairs(tmp_path)
    folder = tmp_path / 'flyingchairs'
    for file in (folder / 'FlyingChairs_release' / 'data').glob('00001_*'):
        file.unlink()
    table = folder / 'FlyingChairs_train_val.txt'
    table.write_text('2\n1\n2\n')  # of 1, 2 and 3
    check(open_source('flyingchairs', tmp_path, 'train')[0], (FIRST, SECOND), 2 * FLOW)
    check(open_source('flyingchairs', tmp_path, 'evaluation')[0], (FIRST, SECOND), 3 * FLOW)
    assert caplog.messages == 2 * [f'{folder} lacks 00001: pairs that need them are left out']
    table.write_text('2\n1\n')  # as many as there are pairs
    with pytest.raises(
        ValueError, match='train_val.txt: expected .* got 2 entries, .* their place'
    ):
        open_source('flyingchairs', tmp_path, 'train')


def test_a_missing_frame_of_flyingthings_is_told(tmp_path, caplog):
    make_flyingthings(tmp_path)
    folder = tmp_path / 'flyingthings3d'
    frames = folder / 'frames_cleanpass' / 'TRAIN' / 'A' / '0000' / 'left'
    save(frames / '0008.png', THIRD)
    (frames / '0007.png').unlink()
    for file in folder.rglob('OpticalFlow*_0007_L.pfm'):
        file.unlink()
    with pytest.raises(ValueError, match='has no pairs'):
        open_source('flyingthings_clean', tmp_path, 'train')
    assert '/flyingthings3d lacks frames_cleanpass/TRAIN/A/0000/left/0007.png: ' in caplog.text


@pytest.mark.parametrize(
    'make, kind',
    [
        (make_autoflow, 'autoflow'),
        (make_sintel, 'sintel_clean'),
        (make_kitti, 'kitti2015'),
        (make_flyingchairs, 'flyingchairs'),
        (make_flyingthings, 'flyingthings_clean'),
        (make_middlebury, 'middlebury'),
    ],
)
def test_hidden_files_make_no_pairs(tmp_path, caplog, make, kind):
    make(tmp_path)
    if kind == 'flyingchairs':
        (tmp_path / kind / 'FlyingChairs_train_val.txt').write_text('1\n1\n1\n')
    source = open_source(kind, tmp_path, 'train')
    names = [source[i]['name'] for i in range(len(source))]
    for path in [x for x in tmp_path.rglob('*') if x.is_file()]:
        path.with_name(f'._{path.name}').write_bytes(b'of the Finder')
        for name in ('.DS_Store', 'Thumbs.db'):
            path.with_name(name).write_bytes(b'of the system')
    for path in [x for x in tmp_path.rglob('*') if x.is_dir()]:
        shutil.copytree(path, path / '.Trashes')
    source = open_source(kind, tmp_path, 'train')
    assert [source[i]['name'] for i in range(len(source))] == names
    assert not caplog.messages


def test_any_folder_of_pairs_in_any_format(tmp_path):
    folder = tmp_path / 'pairs' / 'mine'
    save(folder / 'a_img1.png', FIRST)
    save(folder / 'a_img2.ppm', SECOND)
    files.write_kitti_flow(folder / 'a_flow.png', FLOW, VALID)
    source = open_source('pairs', tmp_path, 'train')
    check(source[0], (FIRST, SECOND), FLOW, VALID)
    assert source[0]['name'] == 'mine/a'
    (folder / 'a_img2.ppm').unlink()
    with pytest.raises(ValueError, match=r'mine/a_img2 is missing: .* endings'):
        open_source('pairs', tmp_path, 'train')


def test_own_pairs_are_split_by_the_folders_train_and_val(tmp_path):
    folder = tmp_path / 'pairs'
    for name in ('train/a', 'train/b/c', 'val/d'):
        save(folder / f'{name}_img1.png', FIRST)
        save(folder / f'{name}_img2.png', SECOND)
        files.write_flo(folder / f'{name}_flow.flo', FLOW)

    def names(split):
        source = open_source('pairs', tmp_path, split)
        return [source[i]['name'] for i in range(len(source))]

    assert (names('train'), names('evaluation')) == (['a', 'b/c'], ['d'])
    (folder / 'train').rename(tmp_path / 'elsewhere')
    assert names('evaluation') == ['d']
    with pytest.raises(ValueError, match='pairs/train is missing: expected <name>_img1.png'):
        names('train')
    (folder / 'val').rename(folder / 'mine')
    assert names('train') == names('evaluation') == ['mine/d']
    with pytest.raises(ValueError, match='has no pairs'):
        names('test')


def test_several_sources_are_one(tmp_path):
    make_sintel(tmp_path)
    make_kitti(tmp_path)
    kinds = ('sintel_clean', 'kitti2015', 'sintel_final')
    source = Several([open_source(kind, tmp_path, 'evaluation') for kind in kinds])
    assert [int(source[i]['data']) for i in range(len(source))] == [0, 0, 1, 2, 2]
    check(source[2], (FIRST, SECOND), FLOW, VALID)
    check(source[4], (SECOND // 2, THIRD // 2), 2 * FLOW)


def test_scenes_come_by_split():
    source = open_source('scenes', '', 'evaluation', SCENES)
    assert (len(source), source[0]['name']) == (3, 'evaluation_000000')
    assert len(open_source('scenes', '', 'train', SCENES)) == 13


@pytest.mark.parametrize(
    'break_it, message',
    [
        (lambda x: (x / 'clean/alley_1/frame_0002.png').write_bytes(b'PNG'), 'frame_0002.png: 3'),
        (
            lambda x: save(x / 'clean/alley_1/frame_0002.png', FIRST[1:]),
            'frame_0002.png: expected 7 x 5 pixels as in its first frame, got 7 x 4',
        ),
        (
            lambda x: (x / 'flow/alley_1/frame_0001.flo').write_bytes(b'PIEH'),
            'frame_0001.flo: expected a .flo file',
        ),
        (
            lambda x: files.write_flo(x / 'flow/alley_1/frame_0001.flo', FLOW[:, 1:]),
            'frame_0001.flo: expected 7 x 5 pixels .*, got 6 x 5',
        ),
        (
            lambda x: (x / 'flow/alley_1/frame_0001.flo').write_bytes(
                b'PIEH' + struct.pack('<2i', WIDTH, HEIGHT) + FLOW.tobytes()[:-1]
            ),
            'frame_0001.flo: expected 292 bytes',
        ),
        (
            lambda x: (x / 'flow/alley_1/frame_0001.flo').write_bytes(
                b'PIEH' + struct.pack('<2i', WIDTH, HEIGHT) + np.full_like(FLOW, np.nan).tobytes()
            ),
            'frame_0001.flo: its flow is not known anywhere',
        ),
        (
            lambda x: save(x / 'occlusions/alley_1/frame_0001.png', FIRST[:, 1:]),
            'occlusions/alley_1/frame_0001.png: expected 7 x 5 .* got 6 x 5',
        ),
    ],
)
def test_a_broken_file_names_itself(tmp_path, break_it, message):
    make_sintel(tmp_path)
    source = open_source('sintel_clean', tmp_path, 'evaluation')
    break_it(tmp_path / 'sintel' / 'training')
    with pytest.raises(BrokenExample, match=message):
        source[0]


def test_a_file_that_went_away_names_itself(tmp_path):
    make_kitti(tmp_path)
    source = open_source('kitti2015', tmp_path, 'evaluation')
    (tmp_path / 'kitti2015/training/flow_occ/000003_10.png').unlink()
    with pytest.raises(BrokenExample, match='flow_occ/000003_10.png: No such file'):
        source[0]


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="flow data must be one of .*'scenes'.*, got 'sintel'"):
        open_source('sintel', tmp_path, 'train')
    with pytest.raises(ValueError, match=r"split must be one of .*, got 'validation'"):
        open_source('autoflow', tmp_path, 'validation')
    with pytest.raises(ValueError, match="'autoflow' lies in .*/autoflow, and there is no such"):
        open_source('autoflow', tmp_path, 'train')
    (tmp_path / 'autoflow').mkdir()
    with pytest.raises(ValueError, match='/autoflow has no pairs of frames laid out as those of'):
        open_source('autoflow', tmp_path, 'train')
    make_sintel(tmp_path)
    (tmp_path / 'sintel/training/flow/alley_1/frame_0002.flo').unlink()
    with pytest.raises(ValueError, match='flow/alley_1/frame_0002 is missing'):
        open_source('sintel_clean', tmp_path, 'evaluation')
    with pytest.raises(ValueError, match="flow is submitted for .*, not for 'middlebury'"):
        write_submission(tmp_path, 'middlebury', 'RubberWhale', FLOW)
