# Exports annotation tracks from an Auto Labeler backend: one results/<batch>_<filter>_tracks.json
# a batch, made again only when it is missing or stale. README.md says how to run it.

from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")


# Optional, so that the workflow runs in any working directory.
if Path("config", "config.yaml").is_file():

    configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/manifest.smk"
include: "workflow/rules/export.smk"
include: "workflow/rules/convert.smk"
include: "workflow/rules/summary.smk"
include: "workflow/rules/verify.smk"
include: "workflow/rules/outcome.smk"


if SETTINGS.upload_to:

    include: "workflow/rules/upload.smk"


rule all:
    default_target: True
    input:
        selected_files,
        converted_files,
        summary_files,
        uploaded_files,
