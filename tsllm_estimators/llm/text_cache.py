"""Where vectors of texts are kept: in memory, and in a file that several processes share.

The file is one of SQLite. An entry that fails its checksum counts as missing, a file that is no
database is put aside and begun anew, and a disk that cannot be used costs time, not the result.
"""

import contextlib
import logging
import os
import sqlite3
import threading
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tsllm_estimators.llm.words import cache_directory

_VERSION = 1  # of the file's layout
_TIMEOUT = 10.0  # seconds that a process waits for the others; a transaction takes far less
_KEYS = 500  # of one question, below the least limit that SQLite may be built with

_ENTRY_BYTES = 200  # what Python takes for an entry in memory beside its vectors

_unusable: set[Path] = set()
_logger = logging.getLogger(__name__)


class Memory:
    """Vectors by key, the most recently used ones."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def get(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the entries of ``keys`` that are there."""
        with self._lock:
            found = {key: self._entries[key] for key in keys if key in self._entries}
            for key in found:
                self._entries.move_to_end(key)
        return found

    def put(self, entries: Mapping[bytes, bytes], limit: int) -> None:
        """Add entries that are not there; beyond ``limit`` bytes drop those longest unused."""
        with self._lock:
            for key, data in entries.items():
                self._n_bytes += len(data) + _ENTRY_BYTES
                self._entries[key] = data
            while self._n_bytes > limit:
                _, data = self._entries.popitem(last=False)
                self._n_bytes -= len(data) + _ENTRY_BYTES

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._entries.clear()
            self._n_bytes = 0


def read(keys: Iterable[bytes]) -> dict[bytes, bytes]:
    """Return the entries of ``keys`` that are there and whole."""
    keys = list(keys)
    found: dict[bytes, bytes] = {}

    def select(connection: sqlite3.Connection) -> None:
        found.clear()  # of a file that was put aside meanwhile
        for begin in range(0, len(keys), _KEYS):
            asked = keys[begin : begin + _KEYS]
            marks = ", ".join("?" * len(asked))
            question = f"SELECT key, data, checksum FROM vectors WHERE key IN ({marks})"
            for key, data, checksum in connection.execute(question, asked):
                if isinstance(data, bytes) and checksum == _checksum(key, data):
                    found[key] = data

    if keys:
        _use(select)
    return found


def write(entries: Mapping[bytes, bytes]) -> None:
    """Store entries, all or none of them."""
    rows = [(key, data, _checksum(key, data)) for key, data in entries.items()]

    def insert(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)
        connection.execute("COMMIT")

    if rows:
        _use(insert)


def clear() -> None:
    """Delete the files, and give a disk that could not be used another chance."""
    _unusable.clear()
    for path in _folder().glob("v*.sqlite*"):
        path.unlink(missing_ok=True)


def _folder() -> Path:
    return cache_directory() / "texts"


def _checksum(key: bytes, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(key))


def _use(action: Callable[[sqlite3.Connection], None]) -> None:
    """Run an action on the file, unless the disk has failed this process before."""
    folder = _folder()
    if folder in _unusable:
        return
    try:
        path = _prepare(folder)
        opened = path.stat().st_ino
        try:
            _run(action, path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:  # malformed, or no database at all
            _put_aside(path, opened, error)
            _run(action, _prepare(folder))
    except (OSError, sqlite3.Error) as error:
        _unusable.add(folder)
        warnings.warn(
            f"the cache of text vectors in {folder} cannot be used ({error}): this process goes on "
            "without it, and texts may be encoded again. Point TSLLM_CACHE to a directory on a "
            "disk that can be written and has room.",
            UserWarning,
            stacklevel=5,
        )


def _prepare(folder: Path) -> Path:
    """Return the file's path, in place and private: vectors tell much of their texts."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    path = folder / f"v{_VERSION}.sqlite"
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return path


def _run(action: Callable[[sqlite3.Connection], None], path: Path) -> None:
    # Opened for each action: a connection must cross neither threads nor forks. The rollback
    # journal, SQLite's default, works on network file systems too, where write-ahead logs do not.
    connection = sqlite3.connect(path, timeout=_TIMEOUT, isolation_level=None)
    with contextlib.closing(connection):
        connection.text_factory = bytes  # a damaged row may claim to be any text
        connection.execute(
            "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, data BLOB, checksum INTEGER)"
        )
        action(connection)


def _put_aside(path: Path, opened: int, error: Exception) -> None:
    """Rename a damaged file, unless another process has done so and begun anew."""
    if path.exists() and path.stat().st_ino == opened:
        _logger.warning("%s is damaged (%s): it is begun anew.", path, error)
        path.replace(path.with_name(f"{path.name}.damaged"))
        # its journal must not be taken for the new file's
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
