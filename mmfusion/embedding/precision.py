"""Vectors in fewer bytes: half precision, int8 with a scale per vector, and one bit per component."""

from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

VectorType = Literal["float32", "float16", "int8", "binary"]
VECTOR_TYPES: tuple[VectorType, ...] = get_args(VectorType)
FloatArray = npt.NDArray[np.float32]


class PackedVectors(NamedTuple):
    """`values` (N, D) float32, float16 or int8, or (N, D / 8) uint8; and `scale` (N,) float32 of int8, else None."""

    values: npt.NDArray[np.generic]
    scale: FloatArray | None = None


def pack(vectors: FloatArray, kind: VectorType) -> PackedVectors:
    """Vectors (N, D) float32 -> fewer bytes.

    int8 spreads each vector by itself over -127 to 127, so that no calibration is needed and one product's bytes never
    depend on another's. binary keeps signs.

    Raises:
        ValueError: An unknown type, or binary vectors whose dimension is no multiple of 8.
    """
    if kind == "binary":
        check_binary(vectors.shape[1])
        return PackedVectors(np.packbits(vectors > 0, axis=1))
    if kind == "int8":
        scale = np.abs(vectors).max(axis=1) / 127
        steps = np.divide(vectors, scale[:, None], out=np.zeros_like(vectors), where=scale[:, None] > 0)
        return PackedVectors(np.rint(steps).astype(np.int8), scale.astype(np.float32))
    if kind not in VECTOR_TYPES:
        raise ValueError(f"vectors are wanted as {kind!r}; give one of {', '.join(VECTOR_TYPES)}.")
    return PackedVectors(vectors.astype(kind))


def unpack(packed: PackedVectors, kind: VectorType) -> FloatArray:
    """What `pack` left of vectors, (N, D) float32; binary ones get length 1."""
    if kind == "binary":
        signs = np.unpackbits(packed.values.astype(np.uint8), axis=1).astype(np.float32) * 2 - 1
        unit: FloatArray = (signs / np.sqrt(max(signs.shape[1], 1))).astype(np.float32)
        return unit
    vectors = packed.values.astype(np.float32)
    return vectors if packed.scale is None else vectors * packed.scale[:, None]


def check_binary(dimension: int) -> None:
    """Refuses a dimension whose bits do not fill bytes."""
    if dimension % 8:
        raise ValueError(
            f"binary vectors of dimension {dimension} do not fill bytes; use a dimension divisible by 8, or int8."
        )
