"""Decoding of JPEG Extended (Process 2 and 4) with 12 bits a sample, as a pydicom plugin.

pydicom's own gdcm plugin refuses 12 bits, though GDCM decodes them (equal to DCMTK's dcmdjpeg on
pydicom's sample). Loaded by the transcoding worker only, never by a daemon.
"""

from typing import Any

import gdcm
from pydicom.uid import JPEGExtended12Bit

DECODER_DEPENDENCIES = {JPEGExtended12Bit: ("python-gdcm>=3.0.10",)}
PLUGIN = ("azekura-12bit", ("appliance.pixels.jpeg_extended", "decode_frame"))


def is_available(transfer_syntax_uid: str) -> bool:
    """Tell pydicom for which transfer syntax this plugin serves."""
    return transfer_syntax_uid in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: Any) -> bytes:
    """Return the samples of one frame, 16 bits each, little endian (pydicom's plugin contract)."""
    if runner.bits_allocated != 16:
        raise NotImplementedError("samples of more than 8 bits need 16 bits allocated")
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(source)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    interpretation = gdcm.PhotometricInterpretation.GetPIType(runner.photometric_interpretation)
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(interpretation))
    if runner.samples_per_pixel > 1:
        image.SetPlanarConfiguration(runner.planar_configuration)
    syntax = gdcm.TransferSyntax.GetTSType(str.__str__(runner.transfer_syntax))
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    image.SetPixelFormat(
        gdcm.PixelFormat(
            runner.samples_per_pixel,
            runner.bits_allocated,
            runner.bits_stored,
            runner.bits_stored - 1,
            runner.pixel_representation,
        )
    )
    # GDCM hands a char* over as str with surrogate escapes.
    return bytes(image.GetBuffer().encode("utf-8", "surrogateescape"))
