"""Who sent a pack, for the turns that peers take; read from the pack itself."""

from appliance.foundation.errors import AzekuraError
from appliance.packs.reader import PackReader


def pack_sender(path: str) -> str:
    """Return the AE title that sent the first member of a pack, "" when it can't be read."""
    try:
        with PackReader(path) as reader:
            first = next(reader.members(), None)
    except (AzekuraError, OSError):
        return ""  # whoever uploads it says what is wrong
    return first.provenance.calling_ae if first is not None else ""
