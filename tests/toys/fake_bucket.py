"""A bucket of Google Cloud Storage without Google: the part of its JSON API that a run uses.

gcsfs, Google's own client and tensorstore talk to it as they do to the real one.
"""

import functools
import json
import os
import re
import sys
import threading
import traceback
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = 'bucket'  # there is one


class FakeBucket:
    """The objects by name; a test may damage or remove them."""

    def __init__(self):
        self.objects = {}  # name -> bytes
        self.generations = {}  # name -> number, which grows with each write
        self.forbidden = lambda method, name: False  # requests to answer with 403
        self.requests = []  # (method, name), those that write
        self.lock = threading.Lock()
        self.uploads = {}  # of several requests: number -> [name, precondition, content so far]

    def put(self, name, content, if_generation=None):
        """Writes an object; None if the precondition does not hold."""
        with self.lock:
            if if_generation is not None and self.generations.get(name, 0) != int(if_generation):
                return None
            self.objects[name] = bytes(content)
            self.generations[name] = len(self.requests) + 1
            self.requests.append(('PUT', name))
        return self.about(name)

    def delete(self, name):
        with self.lock:
            self.requests.append(('DELETE', name))
            self.generations.pop(name, None)
            return self.objects.pop(name, None)

    def about(self, name):
        """What the store tells of an object."""
        return {
            'kind': 'storage#object',
            'bucket': NAME,
            'name': name,
            'size': str(len(self.objects[name])),
            'generation': str(self.generations[name]),
            'metageneration': '1',
            'updated': '2026-01-01T00:00:00.000Z',
            'timeCreated': '2026-01-01T00:00:00.000Z',
        }

    def below(self, prefix):
        """Names of the objects in a folder."""
        return sorted(name for name in list(self.objects) if name.startswith(prefix))


@functools.cache
def fake_bucket() -> FakeBucket:
    """Starts the store, which lives as long as this process, and has clients use it."""
    bucket = FakeBucket()
    handler = type('Handler', (_Handler,), {'bucket': bucket})
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    server.daemon_threads = True
    server.handle_error = _tell
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{server.server_port}'
    os.environ['STORAGE_EMULATOR_HOST'] = address  # of gcsfs and of Google's client
    os.environ['TENSORSTORE_GCS_HTTP_URL'] = address
    os.environ['GOOGLE_AUTH_TOKEN_FOR_TESTING'] = 'token'  # of tensorstore
    return bucket


def _tell(*_):
    if not isinstance(sys.exception(), ConnectionError):  # a client that has read enough goes
        traceback.print_exc()


class _Handler(BaseHTTPRequestHandler):
    """Answers requests."""

    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True  # else many answers take 40 ms longer
    bucket: FakeBucket

    def do_GET(self):
        url, query = self._parsed()
        if url == f'/storage/v1/b/{NAME}':
            self._answer(200, {'kind': 'storage#bucket', 'name': NAME})
        elif url == f'/storage/v1/b/{NAME}/o':
            self._answer(200, self._listing(query))
        elif found := re.fullmatch(rf'(?:/download)?/storage/v1/b/{NAME}/o/(.+)', url):
            name = urllib.parse.unquote(found[1])
            content = self.bucket.objects.get(name)
            if self.bucket.forbidden('GET', name):
                self._answer(403, {'error': {'code': 403, 'message': 'forbidden'}})
            elif content is None:
                self._answer(404, {'error': {'code': 404, 'message': f'No such object: {name}'}})
            elif query.get('alt') != 'media':
                self._answer(200, self.bucket.about(name))
            else:
                self._content(name, content)
        else:
            self._answer(404, {'error': {'code': 404, 'message': 'Not found'}})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        url, query = self._parsed()
        if 'upload_id' in query:
            self._chunk(query['upload_id'], body)
        elif url == f'/upload/storage/v1/b/{NAME}/o':
            self._upload(query, body)
        elif found := re.fullmatch(
            rf'/storage/v1/b/{NAME}/o/(.+)/(rewriteTo/b/{NAME}|moveTo)/o/(.+)', url
        ):
            source, target = map(urllib.parse.unquote, (found[1], found[3]))
            content = self.bucket.objects.get(source)
            if content is None:
                self._answer(404, {'error': {'code': 404, 'message': f'No such object: {source}'}})
                return
            resource = self.bucket.put(target, content)
            if found[2] == 'moveTo':
                self.bucket.delete(source)
                self._answer(200, resource)
            else:
                self._answer(200, {'done': True, 'resource': resource})
        else:
            self._answer(404, {'error': {'code': 404, 'message': 'Not found'}})

    do_PUT = do_POST

    def do_DELETE(self):
        url, _ = self._parsed()
        name = urllib.parse.unquote(url.rpartition(f'/b/{NAME}/o/')[2])
        found = self.bucket.delete(name)
        self._answer(404 if found is None else 204, {} if found is None else None)

    def log_message(self, *_):
        pass

    def _parsed(self):
        url = urllib.parse.urlsplit(self.path)
        return url.path, dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))

    def _listing(self, query):
        prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
        items, prefixes = [], set()
        for name in self.bucket.below(prefix):
            if not query.get('startOffset', '') <= name:
                continue
            if 'endOffset' in query and name >= query['endOffset']:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                items.append(self.bucket.about(name))
        return {'kind': 'storage#objects', 'items': items, 'prefixes': sorted(prefixes)}

    def _upload(self, query, body):
        name, content = query.get('name'), body
        if query['uploadType'] == 'multipart':
            boundary = re.search('boundary="?([^";]+)', self.headers['Content-Type'])[1].encode()
            parts = body.split(b'--' + boundary)[1:3]
            about, content = (re.split(rb'\r?\n\r?\n', part, maxsplit=1)[1] for part in parts)
            name, content = json.loads(about)['name'], re.sub(rb'\r?\n\Z', b'', content)
        if self.bucket.forbidden('PUT', name):
            self._answer(403, {'error': {'code': 403, 'message': 'forbidden'}})
        elif query['uploadType'] == 'resumable':
            number = uuid.uuid4().hex
            precondition = query.get('ifGenerationMatch')
            self.bucket.uploads[number] = [name, precondition, b'']
            address = f'http://{self.headers["Host"]}/upload/storage/v1/b/{NAME}/o'
            self._answer(200, {}, Location=f'{address}?upload_id={number}')
        else:
            self._written(self.bucket.put(name, content, query.get('ifGenerationMatch')))

    def _chunk(self, number, body):
        upload = self.bucket.uploads[number]
        upload[2] += body
        total = self.headers['Content-Range'].rpartition('/')[2]
        if total.isdecimal() and len(upload[2]) == int(total):
            name, precondition, content = self.bucket.uploads.pop(number)
            self._written(self.bucket.put(name, content, precondition))
        else:
            self._answer(308, None, Range=f'bytes=0-{len(upload[2]) - 1}')

    def _written(self, resource):
        if resource is None:
            self._answer(412, {'error': {'code': 412, 'message': 'conditionNotMet'}})
        else:
            self._answer(200, resource)

    def _content(self, name, content):
        generation = {'x-goog-generation': str(self.bucket.generations[name])}
        found = re.fullmatch(r'bytes=(\d+)-(\d*)', self.headers.get('Range', ''))
        if not found:
            self._answer(200, content, **generation)
            return
        first, last = int(found[1]), min(int(found[2] or len(content)), len(content) - 1)
        if first > last:
            self._answer(416, {'error': {'code': 416, 'message': 'no such range'}})
            return
        span = f'bytes {first}-{last}/{len(content)}'
        self._answer(206, content[first : last + 1], **generation, **{'Content-Range': span})

    def _answer(self, code, content, **headers):
        body = content if isinstance(content, bytes) else b''
        if isinstance(content, dict):
            body = json.dumps(content).encode()
            headers['Content-Type'] = 'application/json'
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
