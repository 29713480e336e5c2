# What a run says of itself.

from run_report import RunReporter, closing_summary
from snakemake.logging import logger


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


if workflow.is_main_process:
    reporter = RunReporter(logger, job_stats)


onsuccess:
    for line in summary_of_run(succeeded=True):
        logger.info(line)


onerror:
    for line in summary_of_run(succeeded=False):
        logger.error(line)
