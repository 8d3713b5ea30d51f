"""The module of configs of each task: a new task is in every test of all tasks."""

import importlib

from experiments.tasks import TASKS

CONFIGS = {name: importlib.import_module(f'configs.{name}') for name in TASKS}
