"""Whether the index opens, has a format that this release knows, and can be read."""

from collections.abc import Mapping

from appliance.foundation.errors import AzekuraError, Damaged, UnsupportedFormat
from appliance.foundation.files import FileSystem
from appliance.health.check import Findings, error, failed, ok, warning
from appliance.index.index import Index

CONDITION = "index"


def check_index(
    files: FileSystem, directory: str, noted: Mapping[str, str] | None = None
) -> Findings:
    """Open the current generation and count what it has.

    `noted`: `sentence` and `hint` of what the daemons know against it, while they do.
    """
    index = Index(files, directory)
    if index.generations.mark() is None:
        return [
            warning(CONDITION, "there is no index yet", "The first start makes an empty one"),
        ]
    try:
        with index.read() as view:
            counts = view.counts()
    except (Damaged, UnsupportedFormat) as cause:
        return [
            error(
                CONDITION,
                failed(CONDITION, cause).sentence,
                "No study is lost: the index is made anew from ledger and packs",
                "azekura rebuild-index",
            )
        ]
    except AzekuraError as cause:
        return [failed(CONDITION, cause)]
    finally:
        index.close()
    if noted is not None:
        return [error(CONDITION, noted["sentence"], noted["hint"])]
    return [
        ok(
            CONDITION,
            f"generation {index.generations.current()}: {counts.studies} studies, "
            f"{counts.instances} instances",
        )
    ]
