# From configuration and environment to what a run is asked for.
#
# Needs: config, the EXPORT_* variables, the targets of the command line.
# Makes: SETTINGS, and the input functions of the other rules.

import dataclasses
import functools
import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import yaml
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod, RerunTrigger

WORKFLOW = Path(str(workflow.current_basedir)).parent
sys.path.insert(0, str(WORKFLOW / "scripts"))

from dataset_splits import SPLITS
from export_records import (
    RESOURCES,
    RESULTS,
    asked_exports,
    conversion_path,
    conversion_paths,
    declare_stale,
    failure_path,
    make_writable,
    manifest_path,
    problem_path,
    read_if_sound,
    read_record,
    receipt_path,
    require_manifest,
    revision_path,
    settings_path,
    tracks_path,
    write_record,
)
from export_settings import resolve_settings
from export_summary import page_path, summary_path, sums_path
from export_via_api import ExportError, batches_by_key
from verify_exports import differences


wildcard_constraints:
    # A batch key in its file-name form, and the status filter.
    export=r"[^/]*_(complete|all)",


# Another workflow may include this one as a module: then the command line, and how Snakemake
# behaves, are that one's. Snakemake adds the module's prefix to the paths of rules, and to those
# that input functions return; files that are read or written here are below HERE.
IS_MODULE = not workflow.modifier.is_main_snakefile()
HERE = Path(workflow.modifier.path_modifier.prefix or "")

try:
    SETTINGS = resolve_settings(
        {} if IS_MODULE else workflow.config_settings.config,
        os.environ,
        config,
        yaml.safe_load((WORKFLOW / "schemas" / "config.schema.yaml").read_text()),
    )
    if not SETTINGS.refresh:
        require_manifest(SETTINGS.backend_id, HERE / RESOURCES)
    if SETTINGS.upload_to and not find_spec("snakemake_storage_plugin_s3"):
        raise ExportError("upload_to needs the plugin for object storage: make setup-s3")
except ExportError as error:
    sys.exit(f"Error: {error}")

# How many exports may be asked of the backend at once, however many cores there are.
# `--resources api_connections=N` overrides it.
workflow.global_resources.setdefault("api_connections", 4)


# Jobs run in this environment, or in a rule's own.
IN_CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
JOBS_PYTHON = "python" if IN_CONDA else sys.executable


def is_real_run():
    """Whether jobs will be run: no dry run, no --touch, --summary, --report, --dag or --lint."""
    return (
        workflow.is_main_process
        and workflow.executor_plugin is not None
        and not workflow.dryrun
        and not workflow.touch
    )


def named_exports(wildcards=None):
    """Return the exports that the command line asks for by file, as `<batch>_<filter>`."""
    targets = workflow.dag_settings.targets
    damaged = differing_exports() if "repair" in targets else {}
    return [*damaged, *filter(None, map(export_of_target, targets))]


def asks_for_selection(wildcards=None):
    """Return whether the command line asks for the batches that the configuration selects."""
    targets = set(workflow.dag_settings.targets)
    return not targets or not all(map(export_of_target, targets - {"repair"}))


def export_of_target(target):
    """Return the export whose file or conversion a target is; empty when it is another target."""
    path = Path(os.path.relpath(target, HERE))
    name = path.name.removesuffix(".json").removesuffix(".parquet").removesuffix("_tracks")
    files = (tracks_path(name), receipt_path(name), *conversion_paths(name))
    return name if path in files and name.endswith(("_complete", "_all")) else ""


def set_behaviour():
    """Set how Snakemake behaves where that may not hang on a profile, or no profile can set it.

    Called while the jobs are planned: before that, Snakemake has no settings to change.
    """
    if IS_MODULE:
        return
    if is_real_run():
        # A batch that fails does not stop the others.
        workflow.execution_settings.keep_going = True
        # The limit on jobs a second is for clusters; with it a run ends a second later.
        if workflow.local_exec:
            workflow.scheduling_settings.max_jobs_per_timespan = None
    # What a killed run was at is made again, without being asked to.
    workflow.dag_settings.force_incomplete = True
    # What is fresh is not exported again: unless the command line chooses the triggers, another
    # version of a script is no reason.
    if workflow.dag_settings.rerun_triggers == RerunTrigger.all():
        workflow.dag_settings.rerun_triggers = frozenset({RerunTrigger.MTIME, RerunTrigger.INPUT})


def manifest_request(wildcards):
    """Return the file whose change makes the manifest be fetched, written once per real run.

    A file, not a parameter: it works under every --rerun-triggers and without .snakemake.
    """
    global request_written
    set_behaviour()
    if is_real_run() and not request_written:
        request_written = True
        write_record(HERE / REQUEST, {"asked_at": time.time_ns()}, HERE / RESOURCES)
        # The scripts read their settings from here, not from params: another timeout, selection or
        # address of the same backend must not make exports stale.
        settings = dataclasses.asdict(SETTINGS)
        write_record(HERE / settings_path(), settings, HERE / RESOURCES)
    if is_real_run():
        return REQUEST
    # A dry run shows what the last manifest says, even if a later fetch failed.
    return ancient(REQUEST) if (HERE / REQUEST).exists() else []


def last_manifest():
    """Return the manifest, read once for each time it is written; wait for the checkpoint."""
    path = Path(checkpoints.manifest.get().output[0])
    changed = path.stat().st_mtime_ns
    if changed not in manifests:
        manifests.clear()
        manifests[changed] = read_record(path)
    return manifests[changed]


def selected_files(wildcards):
    """Return the exports that the configuration selects, and their receipts."""
    names = [export.name for export in selected_exports()]
    return [path(name) for name in names for path in (tracks_path, receipt_path)]


def selected_receipts(wildcards):
    """Return the receipts of the exports that the configuration selects."""
    return [receipt_path(export.name) for export in selected_exports()]


def summary_files(wildcards):
    """Return the files that sum up; planned after the manifest, which tells if they are due."""
    last_manifest()
    return [summary_path(), sums_path(), page_path()]


def selected_exports():
    """Return what the configuration selects of the last manifest."""
    listed = batches_by_key(last_manifest()["batches"])
    return asked_exports([], SETTINGS.batch_keys or listed, SETTINGS.status_filter, listed)


@functools.cache
def differing_exports():
    """Return the exports that are not as they were downloaded, by name, each with the difference.

    Found once a run, while `repair` is planned. A real run has them exported again.
    """
    found = {export: what for export, what in differences(4, HERE / RESULTS).items() if what}
    if not found:
        logger.info("All exports are as they were downloaded: there is nothing to repair.")
    for export, what in found.items():
        logger.info(f"To be exported again: {tracks_path(export)} {what}.")
        if is_real_run():
            declare_stale(export, HERE / RESULTS, HERE / RESOURCES)
    return found


def differing_files(wildcards):
    """Return the exports that are not as they were downloaded, and their receipts."""
    return [path(name) for name in differing_exports() for path in (tracks_path, receipt_path)]


def revision_file(wildcards):
    """Return the file that says what there is to export, where the manifest could tell."""
    if not workflow.is_main_process and not workflow.local_exec:
        # A cluster job that carries many exports: one that fails does not stop the others.
        workflow.execution_settings.keep_going = True
    if is_real_run():
        make_writable(HERE / tracks_path(wildcards.export))
        make_writable(HERE / receipt_path(wildcards.export))
    return _written_by_manifest(revision_path(wildcards.export))


def problem_file(wildcards):
    """Return the file that says why the manifest could not tell, if there is one."""
    return _written_by_manifest(problem_path(wildcards.export))


def _written_by_manifest(path):
    last_manifest()
    return path if (HERE / path).exists() else []


def uploaded_files(wildcards):
    """Return the copies on object storage, where one is configured."""
    if not SETTINGS.upload_to:
        return []
    files = [*selected_files(wildcards), *summary_files(wildcards)]
    copies = [storage(f"{SETTINGS.upload_to}/{path.relative_to(RESULTS)}") for path in files]
    return [STORAGE_FAILED] if is_real_run() and storage_fails(copies[-1]) else copies


@functools.cache
def storage_fails(file):
    """Return whether object storage does not answer, and note why.

    Asked before Snakemake does, which gives up the whole run on it: exports can be made all the same.
    """
    try:
        file.flags["storage_object"].exists()
    except Exception as error:
        cause = " ".join(str(error).split())
        failure = {"job": "upload", "cause": f"Nothing is uploaded: {cause}"}
        failure["failed_at"] = time.time()
        write_record(HERE / failure_path("upload/all"), failure, HERE / RESOURCES)
        return True
    return False


def options_of(form):
    """Return the input function that gives the file of a conversion's options.

    A file, rewritten when an option changes: so a change makes conversions stale, under every
    --rerun-triggers and without .snakemake.
    """

    def options(wildcards):
        path = RESOURCES / "options" / f"{form}.json"
        record = {key: getattr(SETTINGS, key) for key in OPTIONS[form]["keys"]}
        record = json.loads(json.dumps(record | {"version": OPTIONS[form]["version"]}))
        if is_real_run() and read_if_sound(HERE / path) != record:
            write_record(HERE / path, record, HERE / RESOURCES)
        return path if (HERE / path).exists() else []

    return options


def selected_conversions(form):
    """Return the input function that gives the selected batches in one form."""

    def conversions(wildcards):
        return [conversion_path(form, export.name) for export in selected_exports()]

    return conversions


def converted_files(wildcards):
    """Return the conversions that are configured, of the exports that are selected."""
    files = [
        conversion_path(form, export.name)
        for export in selected_exports()
        for form in SETTINGS.formats
        if form != "dataset"
    ]
    if "dataset" in SETTINGS.formats:
        files += expand(MERGED_COCO, status_filter=SETTINGS.status_filter, name=DATASET_NAMES)
        files += expand(MERGED_TABLES, status_filter=SETTINGS.status_filter)
    return files


DATASET_NAMES = ["all", *SPLITS]
MERGED_COCO = "results/dataset/{status_filter}/coco/{name}.json"
MERGED_TABLES = "results/dataset/{status_filter}/tables"
# What a conversion depends on beside the export. The version changes with what the scripts write.
OPTIONS = {
    "coco": {"version": 1, "keys": ("include_rejected", "class_from", "classes", "reviewers")},
    "mot": {"version": 1, "keys": ("include_rejected", "class_from", "classes", "frame_rate")},
    "tables": {"version": 1, "keys": ("class_from", "reviewers", "embeddings")},
    "dataset": {"version": 1, "keys": ("classes", "val_percent", "test_percent")},
}

REQUEST = RESOURCES / "request.json"
STORAGE_FAILED = RESULTS / ".staging" / "upload.failed"
request_written = False
manifests = {}
