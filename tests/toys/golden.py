"""The golden files: their arrays, and the models that they hold the weights of.

See tests/golden/README.md.
"""

import pathlib

import numpy as np

from perceiver_jax.weights import foreign_files

OURS = pathlib.Path(__file__).parents[1] / 'golden'

# Keys of configs/imagenet.py:io_<name> that make the model of imagenet_<name>.npz.
SMALL = {
    'images.image_size': 16,
    'model.num_classes': 10,
    'model.encoder.num_latents': 8,
    'model.encoder.latent_channels': 32,
    'model.encoder.num_blocks': 2,
    'model.encoder.num_self_attends_per_block': 2,
    'model.encoder.self_attend.num_heads': 4,
    'model.decoder.query_channels': 32,
}
SMALL_INPUTS = {
    'fourier': {'model.inputs.num_bands': 6, 'model.inputs.max_resolution': (16, 16)},
    'learned': {
        'model.inputs.contents_channels': 24,
        'model.inputs.position_channels': 20,
        'model.inputs.project_positions_to': 20,
    },
    'conv': {
        'model.inputs.contents_channels': 12,
        'model.inputs.num_bands': 6,
        'model.inputs.max_resolution': (4, 4),
    },
}


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


def write_pystate(path, name):
    """Writes the weights of a golden file as DeepMind's release has them."""
    golden = read_arrays(OURS / f'{name}.npz')
    foreign_files.write_deepmind(path, read_tree(golden, 'params'), read_tree(golden, 'state'))
    return path


def write_validation_images(folder, num_classes=10):
    """Writes val/<class>/*.png with one or two images of a class, and no train/.

    Returns:
      The images, uint8 `[height, width, 3]`, and their labels, in the order of the evaluation.
    """
    import cv2  # golden files are compared where it is missing, too

    rng = np.random.default_rng(5)
    images, labels = [], []
    for label in range(num_classes):
        place = folder / 'val' / f'class {label}'
        place.mkdir(parents=True)
        for number in range(1 + label % 2):
            image = rng.integers(0, 256, (20 + label, 25, 3), np.uint8)
            cv2.imwrite(str(place / f'{number}.png'), image[..., ::-1])
            images.append(image)
            labels.append(label)
    return images, np.array(labels)
