# What a run says of itself, and `status`.
#
# Needs: what the other rules leave.
# Makes: the closing summary; the files of summary.smk where its jobs did not.

import atexit
import contextlib
import shutil
import signal
from datetime import UTC, datetime

from download_server import DownloadServer
from export_status import status_json, status_rows, status_table
from export_summary import update_summary
from run_report import RunReporter, closing_summary, handle_in_thread


def asks_for(target, alone=False):
    """Return whether the run is asked for a target; for nothing else, if `alone`."""
    targets = set(workflow.dag_settings.targets)
    return targets == {target} if alone else target in targets


def only_looks():
    """Return whether the run exports nothing, and so has nothing to sum up."""
    targets = set(workflow.dag_settings.targets)
    return bool(targets) and targets <= {"status", "verify"}


def job_stats():
    """Return Snakemake's table of the jobs, as text and as counts."""
    return workflow.dag.stats()


def summary_of_run(succeeded):
    """Return the lines that tell what came of each export that the run was asked for."""
    manifest = read_record(manifest_path()) or {"batches": []}
    listed = batches_by_key(manifest["batches"])
    selected = (SETTINGS.batch_keys or listed) if asks_for_selection() else []
    asked = asked_exports(named_exports(), selected, SETTINGS.status_filter, listed)
    return closing_summary(asked, SETTINGS.api_base, reporter.started, succeeded)


def refresh_summary():
    """Bring the summary up to date when jobs failed, or exports were made that it does not need."""
    if not receipt_path("").parent.is_dir():  # nothing was ever exported
        return
    try:
        update_summary()
    except Exception as error:  # the exports are what matters, and their outcome is to be told
        logger.error(f"The summary and report page were not brought up to date: {error}")


def status_text():
    """Return what `status` prints."""
    now = datetime.now(UTC)
    rows = status_rows(SETTINGS.batch_keys, SETTINGS.status_filter, now)
    if SETTINGS.status_json:
        return status_json(rows, SETTINGS.api_base, now)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    return "\n".join(status_table(rows, SETTINGS.api_base, width))


def verify_text():
    """Return what `verify` found: each export that differs, and a closing line."""
    return Path("logs/verify.log").read_text().strip()


def print_at_exit(text):
    """Print to stdout, which can be piped, once Snakemake's progress bars are gone from stderr."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def before_downloads(count):
    """Start what makes many downloads cheap, where jobs run on this machine and as they are."""
    if count >= FEW_DOWNLOADS and workflow.local_exec and not IN_CONDA:
        with contextlib.suppress(OSError):  # no temporary folder: jobs run without a server
            download_servers.append(DownloadServer())


def after_downloads():
    """Stop it."""
    while download_servers:
        download_servers.pop().stop()


FEW_DOWNLOADS = 8  # for fewer, a server is not worth its start
download_servers = []

if workflow.is_main_process and not IS_MODULE:
    reporter = RunReporter(logger, job_stats, is_real_run, before_downloads)


onstart:
    handle_in_thread(signal.SIGTERM)


onsuccess:
    after_downloads()
    if not only_looks():
        refresh_summary()
        for line in summary_of_run(succeeded=True):
            logger.info(line)
    if asks_for("verify"):
        logger.info(verify_text())
    if asks_for("status"):
        atexit.register(print_at_exit, status_text())


onerror:
    after_downloads()
    if not only_looks():
        refresh_summary()
    if asks_for("verify"):
        logger.error(verify_text().splitlines()[-1] + " (details: logs/verify.log)")
    if not asks_for("verify", alone=True):
        for line in summary_of_run(succeeded=False):
            logger.error(line)
