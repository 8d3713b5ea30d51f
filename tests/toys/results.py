"""A result of a finished run, and how it is written to a file."""

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


def write(path, content):
    path.write_text(json.dumps(content))
    return path
