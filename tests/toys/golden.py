"""The golden files: their arrays, and the models that they hold the weights of.

See tests/golden/README.md.
"""

import pathlib

import numpy as np

OURS = pathlib.Path(__file__).parents[1] / 'golden'


def read_arrays(path):
    with np.load(path) as arrays:
        return dict(arrays)


def read_tree(golden, prefix):
    tree = {}
    for key in golden:
        kind, *names = key.split('|')
        if kind == prefix:
            value = golden[key]
            value = value.astype(np.float32) if value.dtype == np.float16 else value
            tree.setdefault(names[0], {})[names[1]] = value
    return tree


def image_model(sizes):
    """Our arguments for a model that the reference was configured with."""
    inputs, encoder, decoder = (sizes[k] for k in ('input_preprocessor', 'encoder', 'decoder'))
    contents = {'pixels': 'pixels', 'conv1x1': 'conv1x1', 'conv': 'conv7x7'}[inputs['prep_type']]
    ours = dict(contents=contents, contents_channels=inputs.get('num_channels'))
    if inputs['position_encoding_type'] == 'fourier':
        fourier = inputs['fourier_position_encoding_kwargs']
        assert fourier['concat_pos'] and not fourier['sine_only']
        ours.update(
            positions='fourier',
            num_bands=fourier['num_bands'],
            max_resolution=fourier['max_resolution'],
        )
    else:
        ours.update(
            positions='learned',
            position_channels=inputs['trainable_position_encoding_kwargs']['num_channels'],
            position_init_std=0.02,
            project_positions_to=inputs['project_pos_dim'],
        )
    return dict(
        num_classes=sizes['classes'],
        inputs=ours,
        encoder=dict(
            num_latents=encoder['z_index_dim'],
            latent_channels=encoder['num_z_channels'],
            num_blocks=encoder['num_blocks'],
            num_self_attends_per_block=encoder['num_self_attends_per_block'],
            cross_attend=dict(
                num_heads=encoder['num_cross_attend_heads'],
                widening_factor=encoder['cross_attend_widening_factor'],
                use_query_residual=encoder['use_query_residual'],
            ),
            self_attend=dict(
                num_heads=encoder['num_self_attend_heads'],
                widening_factor=encoder['self_attend_widening_factor'],
            ),
        ),
        decoder=dict(
            query_channels=decoder['num_z_channels'],
            cross_attend=dict(use_query_residual=decoder['use_query_residual']),
        ),
    )
