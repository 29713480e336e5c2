# Whether the exports are still what was downloaded; and how to mend those that are not.
#
# Needs: the exports and their receipts.
# Makes: nothing (`verify`); the exports that differ, anew (`repair`).


rule verify:
    log:
        "logs/verify.log",
    localrule: True
    conda:
        "../../environment.yml"
    threads: workflow.resource_settings.cores or 1
    params:
        results=HERE / RESULTS,
        resources=HERE / RESOURCES,
    message:
        "Checking the exports against their receipts"
    script:
        "../scripts/verify_exports.py"


rule repair:
    input:
        differing_files,
