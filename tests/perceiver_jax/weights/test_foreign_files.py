"""Foreign weights: the files of DeepMind and Hugging Face, and hostile files."""

import collections
import json
import os
import pickle
import struct
import sys
import types

import haiku as hk
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from perceiver_jax.weights import foreign_files, translation
from tests.toys.foreign_weights import DECODERS, as_trees, assert_same, three_trees


def pickle_with(monkeypatch, module, name, make, protocol=2):
    """A pickle of `make(class)`, with a class of some name in a module that need not exist."""
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    stand_in = type(name, (), {'__module__': module, '__qualname__': name})
    setattr(sys.modules[module], name, stand_in)
    data = pickle.dumps(make(stand_in), protocol)
    monkeypatch.undo()
    return data


@pytest.fixture
def write(tmp_path):
    def write(data, name='weights.pystate'):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


PARAMS = {
    'embed': {'embeddings': np.arange(6, dtype=np.float32).reshape(2, 3)},
    'linear': {'w': np.arange(6, dtype=np.float32).reshape(2, 3).T, 'b': np.array([2.0, 3.0])},
}
STATES = {'norm': {'counter': np.array(7, np.int32)}}


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_of_any_protocol(protocol, write):
    path = write(pickle.dumps({'params': PARAMS, 'state': STATES}, protocol))
    assert_same(foreign_files.read_deepmind(path), (PARAMS, STATES))
    path = write(pickle.dumps(collections.OrderedDict(PARAMS), protocol))
    assert_same(foreign_files.read_deepmind(path), (PARAMS, {}))


@pytest.mark.parametrize(
    'array',
    [
        np.array([[1, 2, 3]], '>f4'),
        np.array([True, False]),
        np.arange(30).reshape(2, 3, 5).transpose(1, 0, 2),
        np.float32(3),
        np.array(7, np.int64),
    ],
)
def test_arrays_of_any_order_and_size(array, write):
    path = write(pickle.dumps({'a': {'w': array}}, pickle.HIGHEST_PROTOCOL))
    assert_same(foreign_files.read_deepmind(path)[0]['a']['w'], np.asarray(array))


class Mapping:
    """Pickled as Haiku's mappings are: a class that is called with a dictionary."""

    def __init__(self, kind, mapping):
        self.kind, self.mapping = kind, mapping

    def __reduce__(self):
        return self.kind, (self.mapping,)


@pytest.mark.parametrize('name', ['FlatMapping', 'FlatMap', 'frozendict'])
def test_haikus_mappings_of_all_times(name, monkeypatch, write):
    def make(kind):
        return Mapping(kind, {module: Mapping(kind, x) for module, x in PARAMS.items()})

    path = write(pickle_with(monkeypatch, 'haiku._src.data_structures', name, make))
    assert b'haiku._src.data_structures' in path.read_bytes()
    assert_same(foreign_files.read_deepmind(path), (PARAMS, {}))


def test_haikus_mappings_of_today(write):
    path = write(pickle.dumps(hk.data_structures.to_immutable_dict(PARAMS)))
    assert b'FlatMapping' in path.read_bytes()
    assert_same(foreign_files.read_deepmind(path), (PARAMS, {}))


class DeviceArray:
    """Pickled as JAX's arrays were: what NumPy reduces to, and about the shape."""

    def __init__(self, reconstruct, array):
        self.reconstruct, self.array = reconstruct, array

    def __reduce__(self):
        return self.reconstruct, (*self.array.__reduce__(), {'weak_type': False})


def test_jaxs_arrays_of_old(monkeypatch, write):
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    path = write(
        pickle_with(
            monkeypatch,
            'jax._src.device_array',
            'reconstruct_device_array',
            lambda reconstruct: {'linear': {'w': DeviceArray(reconstruct, array)}},
        )
    )
    assert b'jax._src.device_array' in path.read_bytes()
    assert_same(foreign_files.read_deepmind(path)[0]['linear']['w'], array)


def test_jaxs_arrays_of_today(write):
    path = write(pickle.dumps({'linear': {'w': jnp.arange(3), 'b': jnp.float32(2)}}))
    assert b'_reconstruct_array' in path.read_bytes()
    expected = {'w': np.arange(3, dtype=np.int32), 'b': np.array(2, np.float32)}
    assert_same(foreign_files.read_deepmind(path)[0], {'linear': expected})


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Build(Call):
    """Pickled as an object whose state is set afterwards."""

    def __reduce__(self):
        *arguments, state = self.arguments
        return self.function, tuple(arguments), state


VOID = np.dtype('V8')
HOSTILE = {  # what is in a file, given another file that it would make
    'system': lambda path: Call(os.system, f'touch {path}'),
    'eval': lambda path: Call(eval, f"open({str(path)!r}, 'w').close()"),
    'exec': lambda path: {'a': {'w': Call(exec, f"open({str(path)!r}, 'w').close()")}},
    'getattr': lambda path: Call(getattr, np.ndarray, 'tofile'),
    'nested': lambda path: {'a': {'w': np.array([Call(os.system, f'touch {path}'), 2], object)}},
    'object': lambda path: {'a': {'w': np.array([None, 'a'], object)}},
    'void': lambda path: {'a': {'w': np.zeros(2, VOID)}},
    'structure': lambda path: {'a': {'w': np.zeros(2, [('x', 'f4'), ('y', 'O')])}},
}
REFUSED = {  # what the error says of it
    'system': r'asks for posix\.system, ',
    'eval': r'asks for (builtins|__builtin__)\.eval, ',
    'exec': r'asks for (builtins|__builtin__)\.exec, ',
    'getattr': r'asks for (builtins|__builtin__)\.getattr, ',
    'nested': "dtype 'O8'",
    'object': "dtype 'O8'",
    'void': "dtype 'V8'",
    'structure': "dtype 'V12'",
}


@pytest.mark.parametrize('protocol', [2, 4, 5])
@pytest.mark.parametrize('attack', HOSTILE)
def test_nothing_in_a_hostile_file_is_run(attack, protocol, write, tmp_path):
    made = tmp_path / 'made'
    path = write(pickle.dumps(HOSTILE[attack](made), protocol))
    with pytest.raises(ValueError, match=REFUSED[attack]) as error:
        foreign_files.read_deepmind(path)
    assert str(path) in str(error.value) and 'nothing in the file was run' in str(error.value)
    assert not made.exists()
    if attack in ('system', 'eval', 'nested'):  # they would, if they could
        pickle.loads(path.read_bytes())
        assert made.exists()


@pytest.mark.parametrize(
    'module, name',
    [
        ('haiku._src.data_structures', 'Stack'),
        ('haiku._src.data_structures', 'FlatMapping.keys'),
        ('haiku._src.transform', 'FlatMapping'),
        ('numpy.core.multiarray', 'fromfile'),
        ('numpy', 'load'),
        ('jax._src.array', 'ArrayImpl'),
        ('builtins', 'dict'),
        ('copyreg', '_reconstructor'),
    ],
)
def test_other_names_of_admitted_packages_are_refused(module, name, write):
    path = write(b'\x80\x04c' + f'{module}\n{name}\n.'.encode())
    with pytest.raises(ValueError, match=f'asks for {module}.{name}, '):
        foreign_files.read_deepmind(path)


def test_what_a_pickle_sets_on_a_function_is_gone_with_it(write):
    scalar = b'\x80\x04cnumpy.core.multiarray\nscalar\n'
    defaults = b'N}\x8c\x0c__defaults__(K\x01K\x02ts\x86'  # (None, {'__defaults__': (1, 2)})
    called = b')R.'
    with pytest.raises(ValueError, match='TypeError'):  # it did set them: 1 is no dtype
        foreign_files.read_deepmind(write(scalar + defaults + b'b' + called))
    with pytest.raises(ValueError, match='missing 2 required positional arguments'):
        foreign_files.read_deepmind(write(scalar + called))


@pytest.mark.parametrize(
    'state',
    [
        (1, (3,), np.dtype('f4'), False, b'too short'),
        (1, (-1, 4), np.dtype('f4'), False, bytes(12)),
        (1, (3,), np.dtype('f4'), False, [None] * 3),
    ],
)
def test_arrays_whose_parts_do_not_fit(state, write):
    rebuild = np.empty(0).__reduce__()[0]
    array = Build(rebuild, np.ndarray, (0,), b'b', state)
    with pytest.raises(ValueError, match='damaged'):
        foreign_files.read_deepmind(write(pickle.dumps({'a': {'w': array}})))


def test_an_array_without_its_parts_is_refused(write):
    array = Call(np.empty(0).__reduce__()[0], np.ndarray, (0,), b'b')
    with pytest.raises(ValueError, match='is not a pickle of DeepMind'):
        foreign_files.read_deepmind(write(pickle.dumps({'a': {'w': array}})))


@pytest.mark.parametrize('content', [[1, 2], 'text', {'a': 1}, {'a': {'w': 'text'}}, {'a': PARAMS}])
def test_pickles_of_something_else(content, write):
    path = write(pickle.dumps(content))
    with pytest.raises(ValueError, match=f'{path} is not a pickle of DeepMind'):
        foreign_files.read_deepmind(path)


def test_damaged_pickles(write, tmp_path):
    data = pickle.dumps({'params': PARAMS, 'state': STATES})
    for damaged in (b'', b'<html>', b'PK\x03\x04', *(data[:n] for n in range(1, len(data)))):
        path = write(damaged)
        with pytest.raises(ValueError, match=f'{path} is not a pickle'):
            foreign_files.read_deepmind(path)
    with pytest.raises(ValueError, match='none.pickle does not exist'):
        foreign_files.read_deepmind(tmp_path / 'none.pickle')


@pytest.mark.parametrize(
    'data, message',
    [
        (b'}r\xff\xff\xff\x1f.', 'entry 536870911 of the memo, of 1 instructions'),
        (b'}p536870911\n.', 'entry 536870911 of the memo, of 1 instructions'),
        (b'}q\xff.', 'entry 255 of the memo, of 1 instructions'),
        (b'\x80\x04\x95' + struct.pack('<Q', 2**36) + b'}.', 'a frame of 68719476736 bytes'),
        (b'\x80\x04\x8e' + struct.pack('<Q', 2**36) + b'}.', 'expected 68719476736 bytes'),
        (b'\x80\x05\x96' + struct.pack('<Q', 2**36) + b'}.', 'expected 68719476736 bytes'),
        (b'X\xff\xff\xff\xff}.', 'expected 4294967295 bytes'),
        (  # one long text, copied many times
            b'c_codecs\nencode\nq\0X\x10\x27\0\0'
            + b'x' * 10_000
            + b'q\x01U\x06latin1\x86q\x020]('
            + b'h\0h\x02R' * 9
            + b'e.',
            'it copies more than the file holds',
        ),
        (  # one long dictionary
            b'ccollections\nOrderedDict\nq\0}q\x01('
            + b''.join(b'K%cN' % i for i in range(256))
            + b'uh\x01\x85q\x020]('
            + b'h\0h\x02R' * 9
            + b'e.',
            'it copies more than the file holds',
        ),
    ],
)
def test_pickles_that_take_more_than_their_size_are_refused(write, data, message):
    path = write(data)
    with pytest.raises(ValueError, match=f'{path} is not a pickle of DeepMind.*{message}'):
        foreign_files.read_deepmind(path)


@pytest.mark.parametrize('kind', DECODERS)
def test_files_for_deepmind(kind, tmp_path):
    params, state = as_trees(three_trees(kind)[1])
    params['extra'] = {'w': np.arange(6.0).reshape(2, 3).T}  # not in C order
    path = tmp_path / 'weights.pystate'
    foreign_files.write_deepmind(path, params, state)
    content = {'params': params, 'state': state} if kind.startswith('imagenet') else params
    data = path.read_bytes()
    assert_same(pickle.loads(data), content)
    assert_same(foreign_files.read_deepmind(path), (params, state))
    assert data[:2] == b'\x80\x04'
    assert b'_core' not in data and b'multiarray' not in data  # NumPy's of other versions
    assert os.listdir(tmp_path) == ['weights.pystate']


def test_files_for_deepmind_are_of_its_models(tmp_path):
    with pytest.raises(ValueError, match='no Perceiver'):
        foreign_files.write_deepmind(tmp_path / 'a', *as_trees(three_trees('optical_flow')[0]))
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize('kind', DECODERS)
def test_files_for_hugging_face(kind, tmp_path):
    _, _, tensors = three_trees(kind)  # many of them are transposed views
    path = tmp_path / 'model.safetensors'
    foreign_files.write_huggingface(path, tensors)
    assert_same(load_file(path), tensors)
    assert_same(foreign_files.read_huggingface(path), tensors)
    assert_same(foreign_files.read_huggingface(tmp_path), tensors)
    with path.open('rb') as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), 'little')))
    assert header['__metadata__'] == {'format': 'pt'}
    assert os.listdir(tmp_path) == ['model.safetensors']


def test_a_failed_write_leaves_the_former_file(tmp_path):
    path = tmp_path / 'model.safetensors'
    foreign_files.write_huggingface(path, {'a': np.zeros(3)})
    before = path.read_bytes()
    with pytest.raises(Exception, match='str'):
        foreign_files.write_huggingface(path, {'a': np.array(['text'])})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['model.safetensors']


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_short_floats_are_widened(dtype, tmp_path):
    ours, _, tensors = three_trees('optical_flow')
    expected, _ = as_trees({name: x.astype(dtype).astype(np.float32) for name, x in ours.items()})
    save_file(
        {name: x.astype(dtype, order='C') for name, x in tensors.items()},
        tmp_path / 'model.safetensors',
    )
    tensors = foreign_files.read_huggingface(tmp_path)
    assert {x.dtype for x in tensors.values()} == {np.dtype(np.float32)}
    assert_same(translation.from_huggingface(tensors)[0], expected)


@pytest.fixture
def sharded(tmp_path):
    """A folder with a model in two files and their index."""
    save_file({'a': np.zeros(3), 'b': np.ones(5)}, tmp_path / 'model-1.safetensors')
    save_file({'c': np.ones(2)}, tmp_path / 'model-2.safetensors')
    files = dict(a='model-1.safetensors', b='model-1.safetensors', c='model-2.safetensors')
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': files}))
    return tmp_path


def test_tensors_of_several_files(sharded):
    expected = {'a': np.zeros(3), 'b': np.ones(5), 'c': np.ones(2)}
    assert_same(foreign_files.read_huggingface(sharded), expected)
    index = sharded / 'model.safetensors.index.json'
    assert_same(foreign_files.read_huggingface(index), expected)


def test_several_files_must_be_complete(sharded):
    save_file({'a': np.zeros(3)}, sharded / 'model-1.safetensors')
    with pytest.raises(ValueError, match='index.json promises.*: b.$'):
        foreign_files.read_huggingface(sharded)
    (sharded / 'model-2.safetensors').unlink()
    with pytest.raises(ValueError, match="index.json: 'model-2.safetensors' does not exist"):
        foreign_files.read_huggingface(sharded)
    for name in ('', '..', 'a\0b', 10**5 * 'x'):
        index = {'weight_map': {'a': name}}
        (sharded / 'model.safetensors.index.json').write_text(json.dumps(index))
        with pytest.raises(ValueError, match='index.json: .* does not exist') as caught:
            foreign_files.read_huggingface(sharded)
        assert len(str(caught.value)) < 500
    for text in ('{', '[]', '{"weight_map": {"a": 3}}', '"' + 10**6 * '\xff'):
        (sharded / 'model.safetensors.index.json').write_text(text)
        with pytest.raises(ValueError, match='index.json is not an index'):
            foreign_files.read_huggingface(sharded)


def test_torchs_file_needs_torch(write, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(ValueError, match=r'pytorch_model.bin can only be read with torch'):
        foreign_files.read_huggingface(write(b'', 'pytorch_model.bin').parent)


def test_torch_is_told_to_run_nothing(write, monkeypatch):
    def load(path, **options):
        asked.update(options)
        raise pickle.UnpicklingError('set weights_only=False')

    asked = {}
    torch = types.SimpleNamespace(load=load, float16=None, bfloat16=None)
    monkeypatch.setitem(sys.modules, 'torch', torch)
    with pytest.raises(ValueError, match=r'a.bin is damaged, or holds more .* UnpicklingError; '):
        foreign_files.read_huggingface(write(b'', 'a.bin'))
    assert asked == {'map_location': 'cpu', 'weights_only': True}


def test_other_files_for_hugging_face(write, tmp_path):
    with pytest.raises(ValueError, match=r'holds none of model.safetensors, '):
        foreign_files.read_huggingface(tmp_path)
    with pytest.raises(ValueError, match=r'none.safetensors does not exist'):
        foreign_files.read_huggingface(tmp_path / 'none.safetensors')
    with pytest.raises(ValueError, match=r'model.h5 is neither'):
        foreign_files.read_huggingface(write(b'', 'model.h5'))
    for data in (b'', b'<html>', b'\x10' + bytes(30)):
        with pytest.raises(ValueError, match=r'a.safetensors is not a safetensors file'):
            foreign_files.read_huggingface(write(data, 'a.safetensors'))
