"""Writes .mat files of level 5, as SVHN, Flowers-102, Stanford Cars and ImageNet's kit are."""

import struct
import zlib

import numpy as np

TYPES = {"u1": 2, "i4": 5, "u2": 4, "f8": 9}
CLASSES = {"u1": 9, "i4": 12, "u2": 11, "f8": 6}


def write_mat(path, variables, compressed=True):
    body = b""
    for name, value in variables.items():
        matrix = _matrix(name, value)
        packed = zlib.compress(matrix)
        body += struct.pack("<II", 15, len(packed)) + packed if compressed else matrix
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM" + body)


def _element(kind, data):
    if 0 < len(data) <= 4:
        return struct.pack("<HH", kind, len(data)) + data.ljust(4, b"\0")
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def _matrix(name, value):
    if isinstance(value, str):
        shape, kind = (1, len(value)), 4
        rest = _element(4, np.array([ord(c) for c in value], dtype="<u2").tobytes())
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        shape, kind = (1, len(value)), 2
        names = list(value[0])
        rest = _element(5, struct.pack("<i", 32))
        rest += _element(1, b"".join(n.encode().ljust(32, b"\0") for n in names))
        rest += b"".join(_matrix("", entry[n]) for entry in value for n in names)
    elif isinstance(value, list):
        shape, kind = (1, len(value)), 1
        rest = b"".join(_matrix("", entry) for entry in value)
    else:
        array = np.atleast_2d(np.asarray(value))
        code = array.dtype.str[1:]
        shape, kind = array.shape, CLASSES[code]
        rest = _element(TYPES[code], array.tobytes(order="F"))
    head = _element(6, struct.pack("<II", kind, 0))
    head += _element(5, struct.pack(f"<{len(shape)}i", *shape)) + _element(1, name.encode())
    return struct.pack("<II", 14, len(head) + len(rest)) + head + rest
