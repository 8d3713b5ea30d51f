"""Tables and texts."""

from tests.faults.door import Sample, door
from tests.toys.known_model import KnownModel


@door('experiments.data.tables.read_text', 'experiments.data.tables.read_table')
def table_csv(folder):
    from experiments.data.tables import read_table

    file = folder / 'table.csv'
    file.write_text('name,kind\n"a, b",1\nc,2\n')
    return Sample(file, lambda: read_table(file, ['name', 'kind']), 'text')


@door('experiments.classes.class_names', 'experiments.data.tables.read_names')
def names_of_classes(folder):
    from experiments.classes import class_names

    file = folder / 'names.txt'
    file.write_text('cat\ndog\nbird\n')
    model = KnownModel(lambda x: x, {}, {'num_classes': 3})
    return Sample(file, lambda: class_names(model, str(file)), 'text')
