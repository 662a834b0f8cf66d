"""Shards with stored codes, and what `triptych data check` says of them."""

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.kind import Kind
from tests.fuzz.mutators import changed, mutate_bytes, mutate_json, special
from triptych.data.check import check_sources
from triptych.data.codes import CodesAbout, CodeShardWriter
from triptych.data.records import ImageSource, Record
from triptych.data.samples import SharedImage, add_member
from triptych.data.source import DataSourceConfig

SHARD = "000000.tar"


def _build(folder: Path) -> None:
    png = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(png, "PNG")
    writer = CodeShardWriter(folder, samples_per_shard=9)
    for number in range(3):
        image = ImageSource(f"{number}.png")
        entry = Record(record_id=str(number), image=image, caption=f"image {number}")
        writer.write(SharedImage(image, [entry]), png.getvalue(), np.arange(4) + number)
    writer.close()
    CodesAbout(tokenizer="abc", num_codes=512, image_size=32).save(folder)


def mutate_member(rng: random.Random, data: bytes) -> bytes:
    """Change a member of a shard, and keep the shard whole."""
    out = io.BytesIO()
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as shard:
            members = [(m.name, shard.extractfile(m).read()) for m in shard if m.isfile()]
    except Exception:  # an earlier mutator has been there
        return data
    codes = [i for i, (name, _) in enumerate(members) if name.endswith(".npy")]
    if not codes:
        return data
    at = rng.choice(codes) if rng.random() < 0.8 else rng.randrange(len(members))
    name, content = members[at]
    header = b"{'descr': '%s', 'fortran_order': False, 'shape': %s}"
    kinds = (b"<u2", b"|O", b"<f8", b"<U9", b"V4", b"<u8", b"(" * 9000)
    shapes = (b"(4,)", b"(10**9,)", b"(1000000000000,)", b"(-1,)", b"()", b"(2, 2)", b"[" * 90)
    text = header % (rng.choice(kinds), rng.choice(shapes))
    made = b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + bytes(8)
    archive = io.BytesIO()
    np.savez(archive, codes=np.arange(4, dtype=np.uint16))
    others = (mutate_bytes(rng, content), made, archive.getvalue(), b"", b"\x93NUMPY\x09\x09")
    members[at] = name, rng.choice(others)
    with tarfile.open(fileobj=out, mode="w") as shard:
        for name, content in members:
            add_member(shard, name, content)
    return out.getvalue()


def _check(folder: Path) -> None:
    report = check_sources([DataSourceConfig(path=str(folder))])
    report.lines()
    json.dumps(report.to_dict())


KINDS = [
    Kind(
        name="codes",
        build=_build,
        mutators=(
            changed(SHARD, mutate_member),
            changed(SHARD, mutate_member),
            changed(SHARD, mutate_bytes),
            changed("image_codes.json", mutate_json),
            changed("image_codes.json", mutate_bytes),
            special(),
        ),
        use=_check,
    )
]
