"""What the doors of the package say of what they do not take."""

import dataclasses

import haiku as hk
import jax
import numpy as np
import pytest

import perceiver_jax
from perceiver_jax.checks import (
    Module,
    build,
    check_array,
    check_axes,
    check_entries,
    check_fields,
    check_integers,
    check_number,
)
from perceiver_jax.errors import Refused


@dataclasses.dataclass
class Box(Module):
    width: int
    _: dataclasses.KW_ONLY
    depth: int | None = None
    slope: float = 0.5
    sizes: tuple[int, ...] = (1, 2)
    name: str | None = None


def in_haiku(make):
    return hk.transform(make).init(None)


@pytest.mark.parametrize(
    'make, message',
    [
        (
            lambda: Box(3, dept=5),
            "Box has no field 'dept' that can be set here; "
            'known: width, depth, slope, sizes, name. Did you mean depth',
        ),
        (lambda: Box(3, colour=5), r"no field 'colour' .*, name\.$"),
        (lambda: Box([3]), r'Box takes width as an integer, not \[3\]'),
        (lambda: Box(3, depth=2.5), 'Box takes depth as an integer, not 2.5'),
        (lambda: Box(None), 'Box takes width as an integer, not None'),
        (lambda: build(Box, dict(depht=5), width=3), "'depht'.* Did you mean depth"),
        (lambda: build(Box, dict(width=5), width=3), "no field 'width' that can be set here"),
        (lambda: build(Box, dict(depth=5)), r"Box needs width; there is \['depth'\]"),
        (lambda: build(Box, [3]), r'Box takes a mapping of fields, not \[3\]'),
        (lambda: build(Box, None), 'Box takes a mapping of fields, not None'),
    ],
)
def test_fields_that_a_module_does_not_take_are_named(make, message):
    with pytest.raises(Refused, match=message):
        in_haiku(make)


def test_fields_that_a_module_takes():
    def forward():
        assert build(Box, dict(depth=np.int32(5)), width=3).depth == 5
        assert Box(3, slope=1, name='other').module_name == 'other'

    in_haiku(forward)
    check_fields(Box, dict(width=3))


MODULES = ['Encoder', 'QueryDecoder', 'ClassQueryDecoder', 'AverageDecoder', 'FlowUpsample']
MODULES += ['ImageInputs', 'FlowInputs', 'TextInputs', 'JoinModalities', 'LearnedPositions', 'Mlp']
MODULES += ['Attention', 'CrossAttend', 'SelfAttend']


@pytest.mark.parametrize('name', MODULES)
def test_every_module_names_the_field_that_was_meant(name):
    module = getattr(perceiver_jax, name)
    field = next(f.name for f in dataclasses.fields(module) if f.name not in ('_', 'name'))
    with pytest.raises(Refused, match=f"{name} has no field '{field}z' .*Did you mean .*{field}"):
        in_haiku(lambda: module(**{f'{field}z': 1}))


@pytest.mark.parametrize(
    'arrays, message',
    [
        (dict(x=(np.ones((2, 3)), 'B M C')), r'Door takes x \[B, M, C\]; got \(2, 3\)\.'),
        (
            dict(x=(np.ones((2, 3)), 'B M'), mask=(np.ones((2, 4)), 'B M')),
            r'x \[B, M\] and mask \[B, M\]; got \(2, 3\) and \(2, 4\)',
        ),
        (dict(x=(np.ones((2, 3)), 'B 2')), r'x \[B, 2\]; got \(2, 3\)'),
        (dict(x=([[1.0]], 'B M')), 'Door takes x as an array, not as list'),
        (dict(x=(1.0, 'B M')), 'Door takes x as an array, not as float'),
    ],
)
def test_axes_that_a_door_does_not_take_are_named(arrays, message):
    with pytest.raises(Refused, match=message):
        check_axes('Door', **arrays)


def test_axes_that_a_door_takes():
    x = np.ones((2, 3))
    check_axes('Door', x=(x, 'B M'), y=(None, 'B C'), z=(x.T, 'M B'), two=(x, '2 3'))
    check_axes('Door', x=(jax.ShapeDtypeStruct((0, 3), 'float32'), 'B M'))


@pytest.mark.parametrize('values', [5, 5.0, '55', None, (5,), [5, 5, 5], np.float32(5), {}])
def test_one_number_is_no_pair(values):
    with pytest.raises(Refused, match=r'max_resolution .* must have one entry for each of the 2 a'):
        check_entries('max_resolution', values, 2, '2 axes')
    check_entries('max_resolution', np.array([5, 5]), 2, '2 axes')


def test_a_pair_is_no_number():
    with pytest.raises(Refused, match=r'size must be one number, got \(5, 5\)'):
        check_number('size', (5, 5))
    check_number('size', np.float32(5))
    with pytest.raises(Refused, match=r"Door takes bands as an integer, not '5'"):
        check_integers('Door', bands='5')
    check_integers('Door', bands=np.uint8(5))
    with pytest.raises(Refused, match='Door takes x as an array, not as NoneType'):
        check_array('Door', 'x', None)
