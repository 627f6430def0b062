"""How are MNIST's IDX files read, plain or gzipped?"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes: magic 0, 0, 8, rank; sizes as big-endian uint32; the bytes.

    Raises:
        SystemExit: the file is no such IDX file, or its length does not fit its header.
    """
    raw = path.read_bytes()
    data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path}: not an IDX file of unsigned bytes (it starts with {data[:4].hex()}).")
    rank = data[3]
    shape = struct.unpack_from(f">{rank}I", data, 4)
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if body.size != int(np.prod(shape)):
        raise SystemExit(f"{path}: {body.size} bytes of data, but its header announces {shape}; download it again.")
    return body.reshape(shape)


def load_mnist(folder: Path) -> dict[str, npt.NDArray[np.uint8]]:
    """The four arrays of MNIST (or a set of the same form) by name: images [N, 28, 28] and labels [N].

    Raises:
        SystemExit: a file is missing; the message names it.
    """
    arrays = {}
    for name, file_name in FILES.items():
        candidates = [folder / file_name, folder / f"{file_name}.gz"]
        found = next((path for path in candidates if path.exists()), None)
        if found is None:
            raise SystemExit(f"{folder}: neither {file_name} nor {file_name}.gz is there; see README.md.")
        arrays[name] = read_idx(found)
    return arrays
