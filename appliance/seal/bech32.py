"""Bech32 text (BIP 173): how age and Azekura write keys.

The length limit of BIP 173 is not kept, as age does not keep it.
"""

_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_VALUES = {letter: value for value, letter in enumerate(_ALPHABET)}
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
KEY_BYTES = 32
_CHECKSUM_LENGTH = 6


def encode(prefix: str, data: bytes) -> str:
    """Return the lower-case Bech32 text of bytes under a prefix."""
    values = _regroup(data, 8, 5, pad=True)
    checksum = _polymod([*_expand(prefix), *values, *([0] * _CHECKSUM_LENGTH)]) ^ 1
    values += [checksum >> 5 * (5 - index) & 31 for index in range(_CHECKSUM_LENGTH)]
    return prefix + "1" + "".join(_ALPHABET[value] for value in values)


def decode_key(text: str, prefix: str, *, lower_only: bool = False) -> bytes:
    """Return the 32 bytes of a key's Bech32 text; ValueError, which never quotes it, else."""
    if lower_only and text != text.lower():
        raise ValueError("it is not all in lower case")
    data = decode(text, prefix)
    if len(data) != KEY_BYTES:
        raise ValueError("it has the wrong length")
    return data


def decode(text: str, prefix: str) -> bytes:
    """Return the bytes of a Bech32 text; ValueError, which never quotes the text, when it is none.

    Upper and lower case are both taken, mixed case is not.
    """
    if text not in (text.lower(), text.upper()):
        raise ValueError("upper and lower case are mixed")
    found, _, rest = text.lower().rpartition("1")
    if found != prefix:
        raise ValueError(f"it does not begin with {prefix}1")
    try:
        values = [_VALUES[letter] for letter in rest]
    except KeyError:
        raise ValueError("it has a character that does not belong") from None
    if len(values) < _CHECKSUM_LENGTH or _polymod([*_expand(prefix), *values]) != 1:
        raise ValueError("its checksum is wrong; a character was mistyped or lost")
    return bytes(_regroup(values[:-_CHECKSUM_LENGTH], 5, 8, pad=False))


def _expand(prefix: str) -> list[int]:
    codes = prefix.encode()
    return [code >> 5 for code in codes] + [0] + [code & 31 for code in codes]


def _polymod(values: list[int]) -> int:
    checksum = 1
    for value in values:
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for index, generator in enumerate(_GENERATOR):
            if top >> index & 1:
                checksum ^= generator
    return checksum


def _regroup(values: bytes | list[int], width: int, target: int, *, pad: bool) -> list[int]:
    bits = held = 0
    result: list[int] = []
    for value in values:
        bits = bits << width | value
        held += width
        while held >= target:
            held -= target
            result.append(bits >> held & (1 << target) - 1)
        bits &= (1 << held) - 1
    if pad and held:
        result.append(bits << target - held)
    elif not pad and (held >= width or bits):
        raise ValueError("its last character carries bits that must be zero")
    return result
