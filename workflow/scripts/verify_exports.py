"""Check every export against its receipt: is it the file that was downloaded?

The script of the rule `verify`. It reads and hashes; it asks the backend nothing.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from export_records import RESULTS, job_log, read_if_sound, receipt_path, tracks_path
from export_via_api import ExportError

if TYPE_CHECKING:
    from snakemake.script import snakemake


def difference(export: str, results: Path = RESULTS) -> str:
    """Return in what an export is not what its receipt says; empty when it is.

    Args:
        export: The export's name, `<batch>_<filter>`.
        results: The folder of the exports.
    """
    receipt = read_if_sound(receipt_path(export, results)) or {}
    if not {"size", "sha256"} <= receipt.keys():
        return "has no sound receipt to check it against"
    try:
        with tracks_path(export, results).open("rb") as file:
            size = file.seek(0, 2)
            if size != receipt["size"]:
                return f"has {size:,} bytes, and had {receipt['size']:,} when it was exported"
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if sha256 != receipt["sha256"]:
        return f"was changed (SHA-256 {sha256[:12]}…, {receipt['sha256'][:12]}… when exported)"
    return ""


def differences(threads: int, results: Path = RESULTS) -> dict[str, str]:
    """Check every export that has a file or a receipt, whatever its filter.

    Returns:
        For each export, by name and sorted, what `difference` returns.
    """
    names = {path.stem for path in receipt_path("x", results).parent.glob("*.json")}
    names |= {path.name.removesuffix("_tracks.json") for path in results.glob("*_tracks.json")}
    exports = sorted(name for name in names if name.endswith(("_complete", "_all")))
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda name: difference(name, results), exports)
        return dict(zip(exports, found, strict=True))


def main() -> None:
    """Run the rule's job."""
    results = Path(snakemake.params.results)
    with job_log(Path(snakemake.log[0]), "verify", Path(snakemake.params.resources)) as say:
        found = differences(snakemake.threads, results)
        differing = {name: what for name, what in found.items() if what}
        for name, what in differing.items():
            say(f"{tracks_path(name, results)} {what}")
        if differing:
            raise ExportError(
                f"{len(differing)} of {len(found)} exports are not as they were downloaded. "
                "To export just these again: snakemake --cores 4 repair"
            )
        say(f"All {len(found)} exports are as they were downloaded.")


if __name__ == "__main__":
    main()
