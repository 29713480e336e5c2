"""Gather the tables of all selected batches into one Parquet dataset, by split and batch.

The script of the rule `merge_tables`. Its files are hard links to those of the batches, which are
replaced and never written to: the dataset takes no time and no room.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from dataset_splits import batch_name_of, split_of
from export_records import job_log, require_record, staging_of

if TYPE_CHECKING:
    from snakemake.script import snakemake


def main() -> None:
    """Run the rule's job."""
    target = Path(snakemake.output[0])
    with job_log(Path(snakemake.log[0]), "dataset/tables", Path(snakemake.params.resources)) as say:
        options = require_record(Path(snakemake.input.options))
        part = staging_of(target.parents[2]) / "dataset.tables"
        for folder in (part, target):  # what a killed run left
            shutil.rmtree(folder, ignore_errors=True)
        part.mkdir(parents=True)
        for path in map(Path, snakemake.input.batches):
            batch = batch_name_of(path.stem)
            split = split_of(batch, options["val_percent"], options["test_percent"])
            file = part / f"split={split}" / f"batch={batch}" / "part-0.parquet"
            file.parent.mkdir(parents=True)
            try:
                os.link(path, file)
            except OSError:  # a file system without hard links
                shutil.copyfile(path, file)
        part.rename(target)
        say(f"{target}: {len(snakemake.input.batches)} batches")


if __name__ == "__main__":
    main()
