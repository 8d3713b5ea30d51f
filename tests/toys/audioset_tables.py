"""Tables of classes and segments as AudioSet ships them."""

import csv

MIDS = {'/m/09x0r': 'Speech', '/m/05zppz': 'Male speech, man speaking', '/t/dd00005': 'Child'}


def write_classes(path):
    with path.open('w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(['index', 'mid', 'display_name'])
        rows.writerows([i, mid, name] for i, (mid, name) in enumerate(MIDS.items()))
    return path


def write_segments(path, clips):
    """AudioSet's own format: three lines of comments, and quotes around labels with commas."""
    lines = ['# Segments csv created Sun Mar  5 10:54:31 2017', '# num_ytids=3', '# YTID, ...']
    mids = list(MIDS)
    for youtube_id, start, end, labels in clips:
        quoted = ','.join(mids[label] for label in labels)
        lines.append(f'{youtube_id}, {start:.3f}, {end:.3f}, "{quoted}"')
    path.write_text('\n'.join(lines) + '\n')
    return path
