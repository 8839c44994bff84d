"""A dataset with one frame into a picture for people. Runs in the confined worker only.

Nothing is drawn into the picture. The steps are those of PS3.3 C.11: modality, VOI, presentation.
Invariant: grayscale comes out with dark low and light high, MONOCHROME1 turned round.
"""

import contextlib
import io
import math
from typing import Any

import numpy as np
from PIL import GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import get_decoder, pixel_array
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.uid import AllTransferSyntaxes, ExplicitVRLittleEndian

from appliance.foundation.errors import DatasetNotUnderstood
from appliance.pixels.decode import read_single

FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG", "image/gif": "GIF"}
QUALITY_DEFAULT = 90
PIXELS_MAX = 64_000_000
_PLUGINS = (GifImagePlugin, JpegImagePlugin, PngImagePlugin)
_GROUPS = ("FrameVOILUTSequence", "PixelValueTransformationSequence")

Array = Any


def render(raw: bytes, source: str, options: dict[str, str]) -> bytes:
    """Return an encoded picture.

    options: media_type, frame, and, if asked for, window ("center,width,function"), viewport
    ("w,h[,x,y,w,h]"), quality (1 to 100).
    """
    dataset = read_single(raw, source)
    _take_functional_groups(dataset, int(options["frame"]))
    if int(dataset.Rows) * int(dataset.Columns) > PIXELS_MAX:
        raise DatasetNotUnderstood("render", "image", "it has too many pixels")
    samples = pixel_array(dataset, index=0)
    if samples.ndim == 3 and samples.shape[-1] in (3, 4):
        picture = _colored(samples, dataset)
    elif dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        picture = _as_bytes(apply_color_lut(samples, dataset)[..., :3])
    else:
        picture = _gray(samples, dataset, options.get("window", ""))
    image = _in_viewport(Image.fromarray(picture), options.get("viewport", ""))
    out = io.BytesIO()
    media_type = options["media_type"]
    if media_type == "image/jpeg":
        image.save(out, "JPEG", quality=int(options.get("quality") or QUALITY_DEFAULT))
    else:
        image.save(out, FORMATS[media_type])
    return out.getvalue()


def warm_up() -> None:
    """Load all that a picture may need, while files can still be opened."""
    Image.preinit()
    for samples in (np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8)):
        image = Image.fromarray(samples).resize((3, 3), Image.Resampling.BILINEAR)
        for name in FORMATS.values():
            image.save(io.BytesIO(), name)
    for syntax in AllTransferSyntaxes:
        with contextlib.suppress(NotImplementedError):
            get_decoder(syntax)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Rows = dataset.Columns = 2
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = bytes(4)
    pixel_array(dataset, index=0)


def _take_functional_groups(dataset: Dataset, index: int) -> None:
    """Put what the functional groups say of this frame where older objects have it."""
    found: list[Dataset] = list(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames is not None and index < len(frames):
        found.append(frames[index])
    for group in found:
        for name in _GROUPS:
            for item in list(group.get(name) or [])[:1]:
                dataset.update(item)


def _colored(samples: Array, dataset: Dataset) -> Array:
    samples = samples[..., :3]
    if samples.dtype == np.uint8:
        return np.ascontiguousarray(samples)
    shift = max(0, int(dataset.BitsStored) - 8)
    return np.clip(samples >> shift, 0, 255).astype(np.uint8)


def _as_bytes(samples: Array) -> Array:
    if samples.dtype == np.uint8:
        return np.ascontiguousarray(samples)
    return np.ascontiguousarray(samples >> 8).astype(np.uint8)


def _gray(samples: Array, dataset: Dataset, window: str) -> Array:
    values = apply_modality_lut(samples, dataset)
    if window:
        asked = window.split(",")
        level = _windowed(values, float(asked[0]), float(asked[1]), asked[2])
    elif dataset.get("VOILUTSequence"):
        values = apply_voi(values.astype(np.int32), dataset)
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        level = values.astype(np.float64) / (2**bits - 1)
    elif (center := _first(dataset, "WindowCenter")) is not None and (
        width := _first(dataset, "WindowWidth")
    ):
        function = str(dataset.get("VOILUTFunction") or "LINEAR").lower().replace("_", "-")
        level = _windowed(values, center, width, function)
    else:
        low, high = float(values.min()), float(values.max())
        level = (values.astype(np.float64) - low) / (high - low if high > low else 1.0)
    if (dataset.get("PhotometricInterpretation") == "MONOCHROME1") != (
        dataset.get("PresentationLUTShape") == "INVERSE"
    ):
        level = 1.0 - level
    return np.round(np.clip(level, 0.0, 1.0) * 255.0).astype(np.uint8)


def _first(dataset: Dataset, keyword: str) -> float | None:
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    if hasattr(value, "__len__") and not isinstance(value, str):
        value = value[0] if len(value) else None
    return None if value is None else float(value)


def _windowed(values: Array, center: float, width: float, function: str) -> Array:
    """Return 0 to 1 by the functions of PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    values = values.astype(np.float64)
    if function == "sigmoid":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700, 700)))
    if function == "linear-exact":
        return (values - center) / width + 0.5
    if width <= 1:
        return (values > center - 0.5).astype(np.float64)
    return (values - (center - 0.5)) / (width - 1.0) + 0.5


def _in_viewport(image: Image.Image, viewport: str) -> Image.Image:
    """Return the part that is asked for, scaled to fit, its proportions kept."""
    if not viewport:
        return image
    numbers = [float(part) if part else math.nan for part in viewport.split(",")]
    width, height = int(numbers[0]), int(numbers[1])
    if len(numbers) == 6:
        x, y, part_width, part_height = numbers[2:]
        left = 0.0 if math.isnan(x) else x
        top = 0.0 if math.isnan(y) else y
        right = image.width if math.isnan(part_width) else left + part_width
        bottom = image.height if math.isnan(part_height) else top + part_height
        box = (
            max(0, int(left)), max(0, int(top)),
            min(image.width, int(right)), min(image.height, int(bottom)),
        )  # fmt: skip
        if box[0] >= box[2] or box[1] >= box[3]:
            raise DatasetNotUnderstood("render", "viewport", "it lies outside of the image")
        image = image.crop(box)
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)
