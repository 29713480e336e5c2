"""Write what has been exported: summary.tsv, SHA256SUMS and report.html.

The script of the rule `write_summary`.
"""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from export_records import job_log
from export_summary import update_summary

if TYPE_CHECKING:
    from snakemake.script import snakemake


def main() -> None:
    """Run the rule's job."""
    done = Path(snakemake.output[0])
    resources = Path(snakemake.params.resources)
    with job_log(Path(snakemake.log[0]), "summary", resources) as say:
        # Where the clock went back, Snakemake takes a result that is older than its input for an
        # error.
        for receipt in map(Path, snakemake.input.receipts):
            if receipt.stat().st_mtime > time.time():
                os.utime(receipt)
        for path in update_summary(done.parent.parent, resources):
            say(f"{path}: {path.stat().st_size:,} bytes")
        done.touch()


if __name__ == "__main__":
    main()
