"""Results of a finished run and of weights, and how they are written to a file."""

import json

RESULT = {
    'task': 'imagenet',
    'config': 'configs/imagenet.py:fourier',
    'data': 'imagenet2012',
    'metric': 'top1',
    'value': 0.7712,
    'paper_value': 0.78,
    'steps': 150139,
    'examples': 153742336,
    'parameters': 44900000,
    'params_sha256': '5f1d',
    'wall_seconds': 190000.0,
    'device': 'TPU v4 x32',
    'git_commit': '0a1b2c3',
}
# What evaluation.json holds of weights that others trained.
EVALUATION = {
    **{key: value for key, value in RESULT.items() if key != 'steps'},
    'config': 'configs/imagenet.py:io_fourier --config.data.source=folder',
    'weights': '/data/imagenet_fourier.pystate',
    'metrics': {'top1': 0.7712, 'loss': 1.0},
    'date': '2026-11-26T20:10:27+00:00',
    'params_sha256': '0123456789abcdef',
}


def write(path, content):
    path.write_text(json.dumps(content))
    return path
