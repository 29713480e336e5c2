# What has been exported, as a table, checksums and a page; and how that compares with the backend.
#
# Needs: the receipts, the manifest.
# Makes: results/summary.tsv, results/SHA256SUMS and results/report.html. The rule `status` only sees
# to the manifest: outcome.smk prints.
#
# write_summary reads every receipt there is and replaces the three files where they change; summary
# has no code and only declares them, so Snakemake never deletes them (see export.smk). A failed
# export stops both jobs: outcome.smk brings the files up to date at the end of every run.


rule write_summary:
    input:
        receipts=selected_receipts,
    output:
        temp("results/.staging/summary.done"),
    log:
        "logs/summary.log",
    localrule: True
    conda:
        "../../environment.yml"
    params:
        resources=HERE / RESOURCES,
    message:
        "Summing up what is exported"
    script:
        "../scripts/write_summary.py"


rule summary:
    input:
        written="results/.staging/summary.done",
    output:
        table=report(
            summary_path(),
            caption="../report/summary.rst",
            category="Exports",
            labels={"file": "summary.tsv", "shows": "every export, a row each"},
        ),
        sums=report(
            sums_path(),
            caption="../report/sums.rst",
            category="Exports",
            labels={"file": "SHA256SUMS", "shows": "checksums"},
        ),
        page=report(
            page_path(),
            caption="../report/page.rst",
            category="Exports",
            labels={"file": "report.html", "shows": "totals, table and charts"},
        ),


rule status:
    input:
        manifest_path(),
